"""Several judges as one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from pipeline.judging.combine import Rule, combine
from pipeline.types import Trajectory, Verdict

__all__ = ["EnsembleJudge", "JudgeBackend"]


class JudgeBackend(Protocol):
    """What stands behind a judge actor."""

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """For each trajectory one verdict a search round, ``None`` where it cannot be judged."""
        ...

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        """The verdict on the last search round alone (see ``members.judges_by_round``)."""
        ...

    async def ready(self) -> None:
        """Prove that it can judge. Raises UserError or InfrastructureError where it cannot."""
        ...

    async def close(self) -> None:
        """Let go of models and connections."""
        ...

    def stats(self) -> dict[str, float]:
        """Totals of its own, summed over its actors."""
        ...

    def why_not(self) -> str:
        """Why a round had no verdict, the last time; empty where that is not known."""
        ...


class EnsembleJudge:
    """Asks all members at once and combines what they say, signal by signal."""

    def __init__(self, members: Sequence[JudgeBackend], rule: Rule) -> None:
        self._members, self._rule = list(members), rule

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """See ``JudgeBackend``; raises what a member raises."""
        opinions = await asyncio.gather(*(m.judge(trajectories) for m in self._members))
        return [
            tuple(combine(verdicts, self._rule) for verdicts in zip(*of_one, strict=True))
            for of_one in zip(*opinions, strict=True)
        ]

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        """See ``JudgeBackend``; raises what a member raises."""
        opinions = await asyncio.gather(*(m.judge_last(trajectory) for m in self._members))
        return combine(opinions, self._rule)

    async def ready(self) -> None:
        """All members are."""
        await asyncio.gather(*(member.ready() for member in self._members))

    async def close(self) -> None:
        """Close all members."""
        await asyncio.gather(*(member.close() for member in self._members))

    def stats(self) -> dict[str, float]:
        """The members' totals, summed."""
        totals: Counter[str] = Counter()
        for member in self._members:
            totals.update(member.stats())
        return dict(totals)

    def why_not(self) -> str:
        """Of the first member that says it."""
        return next(filter(None, (member.why_not() for member in self._members)), "")
