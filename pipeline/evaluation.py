"""Play a question set with the rollout pool, outside of training."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import GleanerError, InfrastructureError, first_error
from pipeline.pools import RolloutPool
from pipeline.types import Purpose, Question, RolloutRequest, Sampling, Trajectory

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The trajectories of a question set: ``samples`` a question, in question order.

    ``failures`` counts the samples that infrastructure lost; they are no zeros.
    """

    name: str
    trajectories: tuple[tuple[Trajectory, ...], ...]
    sampling: Sampling
    failures: int = 0

    def flat(self) -> list[Trajectory]:
        """All trajectories, question by question."""
        return [t for samples in self.trajectories for t in samples]


async def evaluate(
    rollout: RolloutPool,
    questions: Sequence[Question],
    *,
    name: str,
    sampling: Sampling,
    samples: int,
    concurrency: int,
    allow_search: bool = True,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Play ``samples`` episodes of every question, ``concurrency`` episodes at a time.

    ``on_progress`` is told the number of finished questions. Raises InfrastructureError where
    more than one sample in twenty was lost: such an evaluation would mislead. A UserError of the
    pool ends it at once.
    """
    slots = asyncio.Semaphore(max(1, concurrency // samples))
    results: list[tuple[Trajectory, ...]] = [()] * len(questions)
    failures = finished = 0

    async def play(i: int) -> None:
        nonlocal failures, finished
        request = RolloutRequest(
            question=questions[i],
            group_id=-1 - i,
            num_samples=samples,
            admission_version=-1,
            sampling=sampling,
            purpose=Purpose.EVALUATE,
            allow_search=allow_search,
        )
        async with slots:
            try:
                group = await rollout.rollout(request)
                results[i] = group.trajectories
                failures += len(group.errors)
            except InfrastructureError:
                failures += samples
        finished += 1
        on_progress(finished)

    try:
        async with asyncio.TaskGroup() as tasks:
            for i in range(len(questions)):
                tasks.create_task(play(i))
    except* GleanerError as errors:
        raise first_error(errors) from None
    if failures * 20 > len(questions) * samples:
        raise InfrastructureError(
            f"evaluation {name!r} lost {failures} of {len(questions) * samples} samples to "
            "failing engines or retrievers; see the log, then run it again"
        )
    return Evaluation(name=name, trajectories=tuple(results), sampling=sampling, failures=failures)
