"""Actors that Ray starts again: those that keep dying, or do not come back, end the run by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import losses, pool
from actors.health import Process
from actors.pool import ActorPool, Member, PoolSpec
from pipeline.errors import InfrastructureError, LateError, UserError


class Restarts:
    """In the place of Ray: what became of the actors of a pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended: list[str] = []
        self.returns = asyncio.Event()
        self.error: Exception | None = None

        async def wait_until_back(name: str, host: Any, timeout_s: float) -> None:
            await self.returns.wait()
            if self.error:
                raise self.error

        monkeypatch.setattr(pool, "wait_until_back", wait_until_back)
        monkeypatch.setattr(pool, "_kill", lambda member: self.ended.append(member.name))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Restarts:
    return Restarts(monkeypatch)


def retrievers(number: int) -> ActorPool:
    spec = PoolSpec(
        name="retriever", factory=object, members=[{}] * number, num_cpus=0, start_timeout_s=300,
        request_timeout_s=60, max_retries=2, max_restarts=-1,
    )  # fmt: skip
    started = ActorPool(spec)
    started.members = [
        Member(name=f"retriever-{i}", host=None, in_service=True, process=process(0))
        for i in range(number)
    ]
    return started


def process(pid: int) -> Process:
    return Process(pid, 0.0, "here")


async def why_lost(of: ActorPool) -> str:
    async with asyncio.timeout(10):
        with pytest.raises(InfrastructureError) as info:
            await of.watch_losses()
    return str(info.value)


async def test_a_retriever_whose_processes_keep_dying_ends_the_run(ray: Restarts) -> None:
    alone = retrievers(1)
    for pid in range(1, 5):
        alone._answered("retriever-0", process(pid))
        alone._answered("retriever-0", process(pid))  # the same one, again
    assert (ray.ended, len(alone.in_service)) == ([], 1)
    alone._answered("retriever-0", process(5))
    assert (ray.ended, alone.in_service) == (["retriever-0"], [])
    assert "5 retriever actors in the place of retriever-0 were lost within 10" in await why_lost(
        alone
    )
    with pytest.raises(InfrastructureError, match="no retriever actor is left"):
        await alone.call("search", ["q"], 3)


async def test_losses_that_lie_further_apart_are_lived_with(
    ray: Restarts, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(losses.time, "monotonic", lambda: clock[0])
    counted = losses.Losses("retriever", 1)
    for _ in range(20):
        clock[0] += 151.0
        assert not counted.count(0, "its process ended")


async def test_one_of_two_that_does_not_come_back_leaves_the_other(ray: Restarts) -> None:
    two = retrievers(2)
    ray.error = LateError("retriever-1 did not come back within 300 s; the last try: no memory")
    two._silent("retriever-1", InfrastructureError("it died"))
    two._silent("retriever-1", InfrastructureError("it died"))
    ray.returns.set()
    await asyncio.gather(*two._returning.values())
    assert ([m.name for m in two.in_service], ray.ended) == (["retriever-0"], ["retriever-1"])
    ray.error = UserError("the index is gone")
    two._silent("retriever-0", InfrastructureError("it died"))
    assert (await why_lost(two)).endswith("the last one: the index is gone")


async def test_one_that_comes_back_stays(ray: Restarts) -> None:
    alone = retrievers(1)
    alone._answered("retriever-0", process(1))
    ray.returns.set()
    await asyncio.gather(*alone._returning.values())
    assert (len(alone.in_service), ray.ended, alone._returning) == (1, [], {})
