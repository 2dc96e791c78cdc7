"""A group with more samples than it keeps is full when enough have ended."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from actors.rollout import first_to_end
from pipeline.errors import UserError
from pipeline.types import Trajectory
from tests.support.scripted import search_round, trajectory

ABORTED: list[int] = []


async def sample(number: int, ticks: int, outcome: str | Exception = "") -> Trajectory | str:
    try:
        for _ in range(ticks):
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        ABORTED.append(number)
        raise
    if isinstance(outcome, Exception):
        raise outcome
    return outcome or trajectory(search_round(answer="x"), sample_id=number)


def numbers(outcomes: list[Trajectory | str]) -> list[int | str]:
    return [o.sample_id if isinstance(o, Trajectory) else o for o in outcomes]


async def test_the_first_to_end_are_kept_in_their_order_and_the_others_aborted() -> None:
    ABORTED.clear()
    ticks = [3, 50, 1, 2]
    episodes = [partial(sample, i, t) for i, t in enumerate(ticks)]
    assert numbers(await first_to_end(episodes, keep=3)) == [0, 2, 3]
    assert ABORTED == [1]


async def test_two_that_end_in_the_same_moment_do_not_make_one_too_many() -> None:
    episodes = [partial(sample, i, 2) for i in range(4)]
    assert numbers(await first_to_end(episodes, keep=1)) == [0]


async def test_a_sample_that_failed_is_made_up_for_by_another() -> None:
    episodes = [partial(sample, 0, 1, "lost"), partial(sample, 1, 5), partial(sample, 2, 3)]
    assert numbers(await first_to_end(episodes, keep=2)) == ["lost", 1, 2]


async def test_without_more_samples_all_are_waited_for() -> None:
    episodes = [partial(sample, i, 9 - i) for i in range(3)]
    assert numbers(await first_to_end(episodes, keep=3)) == [0, 1, 2]


async def test_bad_input_ends_the_group_with_its_own_error() -> None:
    episodes = [partial(sample, 0, 1, UserError("too long")), partial(sample, 1, 50)]
    with pytest.raises(UserError, match="too long"):
        await first_to_end(episodes, keep=2)
