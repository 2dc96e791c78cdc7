"""The pool of judges over its actors: turns, and answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.ray_pools import GarbageError, RayJudgePool
from pipeline.errors import InfrastructureError
from pipeline.types import Trajectory, Verdict
from tests.support.traces import GOOD, NEXT, trajectory_of

GROUP = [trajectory_of(GOOD, NEXT)]
JUDGED = [(Verdict(utility=1, correctness=1),) * 2]


class Actors:
    """Two that answer when they are told to."""

    def __init__(self, answers: Sequence[Any] = ()) -> None:
        self.members = [SimpleNamespace(), SimpleNamespace()]
        self.under_way = 0
        self.go = asyncio.Event()
        self._answers = list(answers)

    async def call(self, method: str, trajectories: Sequence[Trajectory]) -> Any:
        self.under_way += 1
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1
        answer = self._answers.pop(0) if self._answers else JUDGED
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_no_more_groups_are_with_the_actors_than_their_deadline_is_for() -> None:
    actors = Actors()
    pool = RayJudgePool(actors, groups_at_once=3)  # type: ignore[arg-type]
    judging = [asyncio.create_task(pool.judge(GROUP)) for _ in range(20)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert actors.under_way == 6
    actors.go.set()
    assert await asyncio.gather(*judging) == [JUDGED] * 20


async def test_a_failure_gives_its_place_back() -> None:
    actors = Actors([InfrastructureError("away"), "no list", "no list"])
    actors.go.set()
    pool = RayJudgePool(actors, groups_at_once=1)  # type: ignore[arg-type]
    with pytest.raises(InfrastructureError):
        await pool.judge(GROUP)
    with pytest.raises(GarbageError):
        await pool.judge(GROUP)
    assert await asyncio.gather(*(pool.judge(GROUP) for _ in range(4))) == [JUDGED] * 4
