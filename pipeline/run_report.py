"""What the report shows beyond numbers: judged trajectories with their credit, pool times."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from pipeline.credit import Algorithm, TrajectoryCredit
from pipeline.errors import GleanerError
from pipeline.launch import Stack
from pipeline.measure import Measured
from pipeline.pools import JudgePool
from pipeline.report import PoolTime, ShownTrajectory, choose_trajectories
from pipeline.step_record import StepRecord
from pipeline.types import Group, Trajectory

__all__ = ["judge_totals", "pool_times", "shown_trajectories"]

logger = logging.getLogger(__name__)


async def pool_times(
    stack: Stack,
    *,
    since: Sequence[PoolTime] = (),
    records: Sequence[StepRecord] = (),
) -> list[PoolTime]:
    """Busy seconds a pool, less those of ``since``; the learner's waiting from ``records``."""
    earlier = {pool.name: pool.busy_s for pool in since}
    waited_s = sum(r.metrics.get("learner/wait_s", 0.0) for r in records)
    times = []
    for name, (pool, num_actors) in stack.pools().items():
        stats: Mapping[str, float] = await pool.stats()
        busy_s = stats.get("busy_s", 0.0) - earlier.get(name, 0.0)
        waiting_s = waited_s if name == "learner" else 0.0
        times.append(PoolTime(name=name, num_actors=num_actors, busy_s=busy_s, waiting_s=waiting_s))
    return times


async def judge_totals(
    judge: JudgePool, *, since: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The judge pool's totals, less those of ``since``. What a lost actor had done since it was
    last asked is in none, so they are what was spent at least."""
    totals = await judge.stats()
    return {name: max(0.0, n - (since or {}).get(name, 0.0)) for name, n in totals.items()}


async def shown_trajectories(
    judge: JudgePool,
    algorithm: Algorithm,
    *,
    before: Measured | None,
    after: Measured | None,
    training: Sequence[Trajectory],
    trained: Sequence[TrajectoryCredit],
    count: int,
) -> list[ShownTrajectory]:
    """Choose telling trajectories, judge those that were not, and work out their credit.

    Credit needs a group: the samples of the same question in the same evaluation. A greedy
    evaluation has one sample a question, hence no advantage to show. ``trained`` is the credit that
    ``training`` was trained with: an algorithm that looks beyond a group has no other to show.
    """
    recorded = {(c.group_id, c.sample_id): c for c in trained}
    groups = {"before": _by_question(before), "after": _by_question(after)}
    pools = {phase: [t for g in found.values() for t in g] for phase, found in groups.items()}
    chosen = choose_trajectories(pools["before"], pools["after"], training, count=count)
    shown = []
    for choice in chosen:
        trajectory, phase = choice.trajectory, choice.phase
        group = groups[phase][trajectory.question.id] if phase in groups else ()
        to_judge = _needs_verdicts(trajectory)
        if to_judge:
            trajectory, group = await _judged(judge, trajectory, group)
        if algorithm.credits_groups_alone:
            credit = _credit(algorithm, trajectory, group or _siblings(trajectory, training))
        else:
            credit = recorded.get((trajectory.group_id, trajectory.sample_id))
        shown.append(
            ShownTrajectory(
                trajectory=trajectory, credit=credit, phase=phase, judged_for_report=to_judge
            )
        )
    return shown


def _by_question(measured: Measured | None) -> dict[str, tuple[Trajectory, ...]]:
    """Groups of samples by question id: the sampled evaluation, else the main one."""
    if measured is None:
        return {}
    evaluation = measured.sampled or measured.main
    return {g[0].question.id: g for g in evaluation.trajectories if g}


def _siblings(trajectory: Trajectory, training: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    return tuple(t for t in training if t.group_id == trajectory.group_id)


def _needs_verdicts(trajectory: Trajectory) -> bool:
    return any(r.verdict is None for r in trajectory.search_rounds)


async def _judged(
    judge: JudgePool, trajectory: Trajectory, group: Sequence[Trajectory]
) -> tuple[Trajectory, tuple[Trajectory, ...]]:
    """The trajectory, and the group with it in place, with verdicts where judging succeeds."""
    try:
        (verdicts,) = await judge.judge([trajectory])
    except GleanerError as error:  # also a spent budget: the run has ended, whatever is shown of it
        logger.warning("a trajectory of the report stays without verdicts: %s", error)
        return trajectory, tuple(group)
    judged = trajectory.with_verdicts(verdicts)
    return judged, tuple(judged if t is trajectory else t for t in group)


def _credit(
    algorithm: Algorithm, trajectory: Trajectory, group: Sequence[Trajectory]
) -> TrajectoryCredit | None:
    """The trajectory's credit inside its group; ``None`` without a group to compare with."""
    if len(group) < 2:
        return None
    as_group = Group(
        group_id=trajectory.group_id,
        question=trajectory.question,
        trajectories=tuple(group),
        admission_version=-1,
    )
    result = algorithm.credit([as_group])
    return next((c for c in result.trajectories if c.sample_id == trajectory.sample_id), None)
