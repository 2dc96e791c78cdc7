"""The stall watchdog says which pool holds everything up, and only when nothing moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pipeline.errors import InfrastructureError
from pipeline.watchdog import Activity, watch_for_stalls

Stats = Callable[[], Awaitable[dict[str, float]]]


async def no_stats() -> dict[str, float]:
    raise InfrastructureError("no engine answers")


async def told_within(
    activity: Activity, stall_s: float, seconds: float, stats: Stats = no_stats
) -> list[str]:
    told: list[str] = []

    async def on_stall(diagnosis: str) -> None:
        told.append(diagnosis)

    watching = asyncio.create_task(watch_for_stalls(activity, stall_s, on_stall, stats))
    await asyncio.sleep(seconds)
    watching.cancel()
    return told


async def test_a_stall_is_told_with_the_pool_that_holds_everything_up() -> None:
    activity = Activity()
    activity.learn("waiting for groups")
    for ticket in (1, 2, 3):
        activity.group(ticket, "rollout")
    activity.group(3, "judge")
    told = await told_within(activity, 0.05, 0.5)
    assert "the rollout pool holds everything up" in told[0]
    assert told[0].endswith("the learner is waiting for groups; 2 in rollout, 1 in judge")


async def test_the_pool_that_episodes_wait_for_is_named() -> None:
    activity = Activity()
    activity.learn("waiting for groups")
    activity.group(1, "rollout")
    waiting = {
        "busy_s": 9.0,
        "waiting_rollout": 2.0,
        "waiting_retriever": 6.0,
        "waiting_judge": 0.0,
    }

    async def stats() -> dict[str, float]:
        return waiting

    told = await told_within(activity, 0.05, 0.5, stats)
    assert "the retriever pool holds everything up" in told[0]
    assert told[0].endswith("1 in rollout, whose episodes wait for: retriever 6, rollout 2")
    activity.group(1, "judge")  # the episodes of an evaluation do not matter then
    assert "the judge pool holds everything up" in activity.diagnosis({"retriever": 6})


async def test_a_learner_that_does_not_come_back_is_named() -> None:
    activity = Activity()
    activity.learn("at train step 4")
    told = await told_within(activity, 0.05, 0.5)
    assert (
        "the learner or the engines hold everything up: the learner is at train step 4" in told[0]
    )


async def test_as_long_as_groups_move_nothing_is_told() -> None:
    activity = Activity()
    watching = asyncio.create_task(told_within(activity, 30.0, 0.3))
    for ticket in range(5):
        activity.group(ticket, "rollout")
        activity.group(ticket, None)
        await asyncio.sleep(0.02)
    assert await watching == []
    assert activity.diagnosis().startswith("the learner or the engines")


async def test_zero_seconds_turn_it_off() -> None:
    assert await told_within(Activity(moved_at=0.0), 0.0, 0.05) == []


@pytest.mark.parametrize("stall_s", [0.05])
async def test_it_is_told_again_while_it_lasts(stall_s: float) -> None:
    assert len(await told_within(Activity(), stall_s, 1.0)) >= 2
