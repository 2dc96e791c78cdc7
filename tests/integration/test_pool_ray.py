"""The generic pool on real Ray actors: dispatch, deadlines, retries, the dead, typed errors."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.cluster import running_cluster
from actors.health import Health
from actors.placement import PlacementPlan
from actors.pool import ActorPool, PoolSpec
from actors.pool_client import PoolClient
from pipeline.config import ClusterConfig
from pipeline.errors import InfrastructureError, UserError
from tests.support.rollout import Echo


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    config = ClusterConfig(address="local", num_cpus=2, object_store_gib=0.1)
    with running_cluster(config, PlacementPlan(actors=(), bundles=())) as cluster:
        yield cluster


def spec(name: str, **changes: Any) -> PoolSpec:
    values: dict[str, Any] = {
        "name": name,
        "factory": Echo,
        "members": [{}, {}],
        "num_cpus": 0,
        "start_timeout_s": 120,
        "request_timeout_s": 60,
        "max_retries": 2,
    }
    return PoolSpec(**{**values, **changes})


@pytest.fixture
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[ActorPool]:
    pool = await ActorPool.start(spec(request.node.name[-30:]))
    yield pool
    await pool.stop()


async def test_a_client_of_every_second_actor_calls_no_other(pool: ActorPool) -> None:
    second = pool.client(every=(1, 2))
    assert {await second.call("pid") for _ in range(3)} == {pool.members[1].pid}


async def test_calls_go_to_the_least_loaded_actor(pool: ActorPool) -> None:
    busy = asyncio.create_task(pool.call("sleep", 60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answered = [await pool.call("pid") for _ in range(4)]
    assert set(answered) == {pool.members[1].pid}
    assert sorted((await pool.broadcast("pid")).values()) == sorted(m.pid for m in pool.members)
    busy.cancel()


async def test_a_call_whose_actor_is_killed_is_answered_by_another_and_the_dead_one_is_replaced(
    pool: ActorPool, tmp_path: Path
) -> None:
    pids = [member.pid for member in pool.members]
    admitted: list[str] = []

    async def admit(member: Any) -> None:
        admitted.append(member.name)

    pool.admit = admit
    survivor = await pool.call("die_once", str(tmp_path / "killed"))
    assert survivor == pids[1]
    await pool.wait_replaced()
    assert [member.name for member in pool.in_service] == [admitted[0], pool.members[1].name]
    assert pool.members[0].pid not in pids
    assert pool.replaced == 1


async def test_an_expired_deadline_names_the_actor_and_the_call(pool: ActorPool) -> None:
    began = time.monotonic()
    member = pool.members[0]
    with pytest.raises(InfrastructureError, match=rf"{member.name} did not finish 'sleep' within"):
        await pool.call_member(member, "sleep", 30, timeout_s=0.5)
    assert time.monotonic() - began < 10
    assert await pool.call_member(member, "add", 1, 2) == 3  # it is well, only that call was late


async def test_a_user_error_passes_through_without_a_retry(pool: ActorPool) -> None:
    with pytest.raises(UserError, match=r"^bad input$"):
        await pool.call("refuse")


async def test_an_unexpected_error_is_tried_elsewhere_and_reported_with_its_kind(
    pool: ActorPool,
) -> None:
    with pytest.raises(InfrastructureError, match=r"'break_down' failed 3 times.*KeyError") as info:
        await pool.call("break_down")
    assert all(member.name in str(info.value) for member in pool.members)


async def test_a_client_inside_another_process_survives_a_restart_by_ray(tmp_path: Path) -> None:
    import pickle

    pool = await ActorPool.start(spec("restarting", members=[{}], max_restarts=2))
    try:
        client: PoolClient = pickle.loads(pickle.dumps(pool.client()))
        killed = pool.members[0].pid
        assert await client.call("die_once", str(tmp_path / "killed")) != killed
    finally:
        await pool.stop()


async def test_an_actor_that_says_that_it_is_lost_is_started_again_by_ray(tmp_path: Path) -> None:
    """A judge whose engine died; its process is as well as ever."""
    pool = await ActorPool.start(spec("given-up", members=[{}], max_restarts=-1))
    try:
        before = pool.members[0].pid
        assert await pool.call("give_up_once", str(tmp_path / "gave up")) != before
    finally:
        await pool.stop()


async def test_what_an_actor_warned_of_is_in_our_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.pool._LISTEN_EVERY_S", 3600)  # only the end asks
    caplog.set_level("INFO")
    pool = await ActorPool.start(spec("worried", members=[{}]))
    for number in range(30):
        await pool.call("warn", f"warning {number}")
    await pool.stop()
    told = [r.getMessage() for r in caplog.records if " warns: " in r.getMessage()]
    assert told[0] == "worried-0 warns: (10 more before)"
    assert told[1:] == [f"worried-0 warns: warning {n}" for n in range(10, 30)]


async def test_an_actor_that_cannot_start_says_why_and_leaves_nothing_behind() -> None:
    import ray

    with pytest.raises(InfrastructureError, match=r"broken-0 failed in 'open'.*no_such_argument"):
        await ActorPool.start(spec("broken", members=[{"no_such_argument": 1}]))
    with pytest.raises(ValueError, match="broken-0"):
        ray.get_actor("broken-0")


HEALTH = Health(interval_s=0.2, timeout_s=6.0)  # a busy machine is silent for a while, too


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.1)


async def test_an_actor_that_is_frozen_is_ended_and_replaced_and_its_call_answered() -> None:
    pool = await ActorPool.start(spec("frozen", health=HEALTH, num_cpus=0))
    try:
        frozen = pool.members[0]
        os.kill(frozen.pid, signal.SIGSTOP)
        answers = [asyncio.create_task(pool.call("pid")) for _ in range(2)]
        assert set(await asyncio.gather(*answers)) == {pool.members[1].pid}
        assert "was silent for 6 s" in pool.why_lost
        await pool.wait_replaced()
        assert not psutil.pid_exists(frozen.pid)
        assert len(pool.in_service) == 2
    finally:
        await pool.stop()


async def test_an_actor_that_ray_restarts_and_that_is_frozen_comes_back() -> None:
    pool = await ActorPool.start(spec("thawed", members=[{}], max_restarts=-1, health=HEALTH))
    try:
        before = pool.members[0].pid
        os.kill(before, signal.SIGSTOP)
        after = await pool.client().call("pid")
        assert after != before
        await until(lambda: pool.members[0].pid == after)  # the next answer says who it is now
    finally:
        await pool.stop()


async def test_an_actor_that_ray_restarts_and_that_keeps_dying_is_given_up_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.losses._MAX_LOSSES", 2)
    pool = await ActorPool.start(spec("dying", members=[{}], max_restarts=-1, health=HEALTH))
    try:
        lost = asyncio.create_task(pool.watch_losses())
        while not lost.done():
            before = pool.members[0].pid
            os.kill(before, signal.SIGKILL)
            await until(lambda before=before: lost.done() or pool.members[0].pid != before)
        with pytest.raises(InfrastructureError, match=r"2 dying actors in the place of dying-0"):
            await lost
        assert pool.in_service == []
    finally:
        await pool.stop()


async def test_a_replacement_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.pool._NEXT_TRY_S", 0.1)
    pool = await ActorPool.start(spec("stubborn", members=[{}]))
    refusals = [InfrastructureError("no weights yet")]

    async def admit(member: Any) -> None:
        if refusals:
            raise refusals.pop()

    pool.admit = admit
    try:
        with pytest.raises(InfrastructureError, match="was lost during 'die'"):
            await pool.call_member(pool.members[0], "die")
        assert await pool.call("add", 1, 2) == 3  # waits for the second replacement
        assert [member.name for member in pool.in_service] == ["stubborn-0.2"]
    finally:
        await pool.stop()


async def test_a_place_whose_actors_die_again_and_again_fails_the_pool_with_a_diagnosis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.losses._MAX_LOSSES", 2)
    pool = await ActorPool.start(spec("doomed", members=[{}]))
    try:
        with pytest.raises(
            InfrastructureError, match=r"2 doomed actors in the place of doomed-0 were"
        ):
            for _ in range(2):
                await pool.call("die")
    finally:
        await pool.stop()
