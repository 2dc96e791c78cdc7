"""The process that holds an object: when it makes it, and what callers see meanwhile."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.host import Host
from pipeline.errors import ActorLostError, UserError


class Made:
    """Counts how often it is made, each time once it is let go."""

    def __init__(self, times: list[int], go: threading.Event, error: Exception | None) -> None:
        times.append(1)
        assert go.wait(30)
        if error is not None:
            raise error

    async def answer(self) -> int:
        return 42


def host(
    restarts: bool, go: threading.Event, error: Exception | None = None
) -> tuple[Host, list[int]]:
    times: list[int] = []
    return Host(Made, {"times": times, "go": go, "error": error}, restarts), times


@pytest.fixture
def go() -> threading.Event:
    return threading.Event()


async def test_after_a_restart_calls_fail_at_once_until_the_object_is_made_again(
    go: threading.Event,
) -> None:
    again, times = host(True, go)
    for _ in range(3):
        with pytest.raises(ActorLostError, match="not ready yet"):
            await again.call("answer")
    go.set()
    await again.open()
    assert await again.call("answer") == 42
    assert times == [1]


async def test_one_that_is_never_started_again_is_made_by_its_first_call(
    go: threading.Event,
) -> None:
    fresh, _ = host(False, go)
    go.set()
    assert await fresh.call("answer") == 42


async def test_a_caller_that_gives_up_does_not_make_it_a_second_time(go: threading.Event) -> None:
    slow, times = host(True, go)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slow.open(), 0.05)
    go.set()
    await slow.open()
    assert times == [1]


async def test_why_it_could_not_be_made_again_reaches_a_caller_and_it_is_tried_again(
    go: threading.Event,
) -> None:
    broken, times = host(True, go, UserError("the index is gone"))
    go.set()
    with pytest.raises(ActorLostError, match="not ready yet"):
        await broken.call("answer")
    for tries in (1, 2):
        with pytest.raises(UserError, match="the index is gone"):
            await broken.open()
        assert len(times) == tries
        with pytest.raises(UserError, match="the index is gone"):
            await broken.call("answer")  # and begins the next try


@pytest.mark.parametrize("restarts", [True, False])
async def test_an_object_that_is_lost_ends_a_process_that_is_started_again(
    restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        async def work(self) -> None:
            raise ActorLostError("its engine is down")

    ended: list[int] = []
    monkeypatch.setattr("actors.host._LAST_WORDS_S", 0.0)
    monkeypatch.setattr("actors.host.os._exit", ended.append)
    host = Host(Lost, {}, restarts=restarts)
    await host.open()
    with pytest.raises(ActorLostError, match="engine"):
        await host.call("work")
    await asyncio.sleep(0.01)
    assert ended == ([1] if restarts else [])
