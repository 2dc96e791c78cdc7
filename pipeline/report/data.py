"""What the report is made from: measured things only, no formatting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.types import Trajectory

if TYPE_CHECKING:
    from pipeline.credit.algorithm import Algorithm, TrajectoryCredit
    from pipeline.evaluation import Evaluation
    from pipeline.step_record import StepRecord

__all__ = ["Phase", "PoolTime", "ReportData", "ShownTrajectory"]

Phase = Literal["before", "training", "after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTrajectory:
    """One trajectory that the page prints whole.

    ``credit`` is what the algorithm gave it (or would have given it within its group),
    ``None`` where there is no group to compare with. ``judged_for_report`` marks verdicts that
    no training saw.
    """

    trajectory: Trajectory
    credit: TrajectoryCredit | None
    phase: Phase
    judged_for_report: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTime:
    """Seconds of a pool during training, added up over its actors.

    ``waiting_s`` is time in which the pool was ready and had nothing to do for want of
    another one (the learner waiting for groups); what is left of ``num_actors`` times the
    training time is idle.
    """

    name: str
    num_actors: int = 1
    busy_s: float
    waiting_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that the page shows.

    ``summary`` is that of ``pipeline.summary.build_summary``; ``algorithm`` the one that made the
    credit of ``shown``, without which the page cannot say what a verdict did; ``train_s`` the wall
    time of training; ``staleness_tokens`` trained tokens by staleness.
    """

    summary: Mapping[str, Any]
    algorithm: Algorithm | None = None
    records: Sequence[StepRecord] = ()
    before: Evaluation | None = None
    after: Evaluation | None = None
    before_sampled: Evaluation | None = None
    after_sampled: Evaluation | None = None
    shown: Sequence[ShownTrajectory] = ()
    pools: Sequence[PoolTime] = ()
    train_s: float = 0.0
    staleness_tokens: Mapping[int, int] = field(default_factory=dict)
    config_yaml: str = ""
    trace: str = ""  # file name beside the page
    versions: Mapping[str, str] = field(default_factory=dict)
