"""``judge.early``: the rounds of an episode are judged while it goes on.

    search 1 ─► round 2 is generated ─► search 2 ─► round 3 is generated ─► answer
       └► verdict on round 1                └► verdict on round 2

Nothing waits for a verdict before the episode has ended. A judge that reads whole trajectories
(``judge.rounds=together``) is asked then. What it does not answer is judged with the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.errors import InfrastructureError
from pipeline.types import Question, Round, Status, Trajectory, Verdict

__all__ = ["EarlyJudge", "EarlyJudging"]


class EarlyJudge(Protocol):
    """How engines ask the judge. Its methods raise InfrastructureError where no answer comes."""

    @property
    def by_round(self) -> bool:
        """Whether it judges a round without those after it."""
        ...

    async def judge(self, trajectory: Trajectory) -> tuple[Verdict | None, ...]:
        """One verdict a search round."""
        ...

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        """The verdict on the last search round."""
        ...


class EarlyJudging:
    """Of one episode: told of its searches, then asked for the verdicts, stopped in any case."""

    def __init__(
        self, judge: EarlyJudge, question: Question, *, group_id: int, sample_id: int
    ) -> None:
        self._judge, self._question = judge, question
        self._group_id, self._sample_id = group_id, sample_id
        self._asked: list[asyncio.Task[Verdict | None]] = []

    def searched(self, rounds: Sequence[Round]) -> None:
        """The last of ``rounds`` has its passages, and another round follows."""
        if self._judge.by_round:
            self._asked.append(asyncio.create_task(self._verdict(tuple(rounds))))

    async def judged(self, trajectory: Trajectory) -> Trajectory:
        """With the verdicts, as far as there are any."""
        if self._judge.by_round:
            return trajectory.with_verdicts(await asyncio.gather(*self._asked))
        try:
            return trajectory.with_verdicts(await self._judge.judge(trajectory))
        except InfrastructureError:
            return trajectory

    async def stop(self) -> None:
        """Nobody waits for a verdict any more."""
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)

    async def _verdict(self, rounds: tuple[Round, ...]) -> Verdict | None:
        so_far = Trajectory(
            question=self._question,
            group_id=self._group_id,
            sample_id=self._sample_id,
            rounds=(*rounds, _NOT_YET),
            status=Status.OUT_OF_ROUNDS,
            reward=0.0,
        )
        try:
            return await self._judge.judge_last(so_far)
        except InfrastructureError:
            return None


# In the place of the round that will follow: a trajectory's last one is not judged.
_NOT_YET = Round(
    context_ids=np.empty(0, np.int32),
    token_ids=np.empty(0, np.int32),
    logprobs=np.empty(0, np.float32),
    versions=np.empty(0, np.int32),
    text="",
)
