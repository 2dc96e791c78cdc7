"""What credit assignment hands on: samples for the learner, numbers for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.types import Sample

__all__ = ["CreditResult", "TrajectoryCredit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryCredit:
    """The credit of one trajectory, as a report shows it.

    ``contributions`` holds NaN for a round without a verdict (not needed, or failed).
    ``weights`` are 1 for failures; ``round_advantages`` is ``advantage * weights`` with the
    answer round's ``advantage`` appended.
    """

    group_id: int
    sample_id: int
    advantage: float
    success: bool  # outcome reward 1 and positive advantage
    contributions: np.ndarray  # float64[S]
    weights: np.ndarray  # float64[S]
    round_advantages: np.ndarray  # float64[T]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditResult:
    """One batch: the loss is ``sum(loss_weights * token_loss) / normaliser`` over samples."""

    samples: Sequence[Sample]
    normaliser: float
    trajectories: Sequence[TrajectoryCredit]  # one a trajectory, in the order of the groups
    metrics: Mapping[str, float]
