"""How much credit hangs on a single verdict: the weights, had ONE of them been the opposite.

The opposite of a verdict that makes ``p_t`` is one that makes ``1 - p_t``: "contributed" for "did
not", whatever the signals were. All else stays: the other verdicts, the outcome, the advantage
(which no verdict moves). How contributions become weights is not known here; it is handed over as
a function, so that training's own is the only one (``Algorithm.opposite_verdicts``).

Legend: ``_S`` one value a search round; ``p`` contribution, NaN without a verdict; ``w`` weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = [
    "OppositeVerdict",
    "VerdictSensitivity",
    "Weigh",
    "flipped",
    "opposite_verdicts",
    "verdict_sensitivity",
]

Weigh = Callable[[np.ndarray], np.ndarray]  # float64[S] contributions to float64[S] weights


@dataclass(frozen=True, slots=True, kw_only=True)
class OppositeVerdict:
    """What one round's verdict decided, by what its opposite would have done."""

    contribution: float  # p_t as it is; 1 - p_t had the verdict been the opposite
    weight: float  # of the round, as it is
    opposite_weight: float  # of the round, had its verdict been the opposite
    others_change: float  # of the other round's weight that would change most; 0 without others

    @property
    def change(self) -> float:
        """Of the round's own weight."""
        return self.opposite_weight - self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictSensitivity:
    """Over verdicts, each turned round alone.

    ``weight_change`` is ``|w'_t - w_t|`` of the round itself. ``credit_share`` is that over S: of
    what the trajectory's search rounds have to share, the part that goes elsewhere (where the mean
    weight is conserved the other rounds gain together what this one loses).
    """

    trajectories: int  # with at least one verdict
    one_search_round: int  # of these, those with nothing to share
    verdicts: int
    weight_change_mean: float
    weight_change_max: float
    credit_share_mean: float
    credit_share_max: float

    def as_dict(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return asdict(self)


def flipped(p_S: np.ndarray, t: int) -> np.ndarray:
    """float64[S]: the same with ``1 - p_t`` for search round ``t``.

    >>> flipped(np.array([1.0, 0.0]), 1).tolist()
    [1.0, 1.0]
    """
    other_S = np.array(p_S, np.float64)
    other_S[t] = 1.0 - other_S[t]
    return other_S


def opposite_verdicts(p_S: np.ndarray, weigh: Weigh) -> tuple[OppositeVerdict | None, ...]:
    """One entry a search round: that verdict turned round, the others as they are. ``None`` for a
    round without a verdict (NaN), which has no opposite.

    >>> from functools import partial
    >>> from pipeline.credit.contribution import contribution_weights
    >>> first, second = opposite_verdicts(
    ...     np.array([1.0, 0.0]), partial(contribution_weights, alpha=float("inf")))
    >>> first  # no round would have contributed: both weigh 1
    OppositeVerdict(contribution=1.0, weight=2.0, opposite_weight=1.0, others_change=1.0)
    >>> second  # both would have
    OppositeVerdict(contribution=0.0, weight=0.0, opposite_weight=1.0, others_change=-1.0)
    """
    weights_S = weigh(p_S)
    return tuple(
        None if np.isnan(p) else _opposite(t, float(p), weights_S, weigh(flipped(p_S, t)))
        for t, p in enumerate(p_S)
    )


def verdict_sensitivity(
    trajectories: Sequence[Sequence[OppositeVerdict | None]],
) -> VerdictSensitivity | None:
    """Over what ``opposite_verdicts`` gave for each trajectory; ``None`` without any verdict."""
    judged = [t for t in trajectories if any(v is not None for v in t)]
    if not judged:
        return None
    changes = [(abs(v.change), len(t)) for t in judged for v in t if v is not None]
    weight = [change for change, _ in changes]
    share = [change / rounds for change, rounds in changes]
    return VerdictSensitivity(
        trajectories=len(judged),
        one_search_round=sum(len(t) == 1 for t in judged),
        verdicts=len(changes),
        weight_change_mean=sum(weight) / len(weight),
        weight_change_max=max(weight),
        credit_share_mean=sum(share) / len(share),
        credit_share_max=max(share),
    )


def _opposite(t: int, p: float, weights_S: np.ndarray, opposite_S: np.ndarray) -> OppositeVerdict:
    others = np.delete(opposite_S - weights_S, t)
    largest = others[np.abs(others).argmax()] if len(others) else 0.0
    return OppositeVerdict(
        contribution=p,
        weight=float(weights_S[t]),
        opposite_weight=float(opposite_S[t]),
        others_change=float(largest),
    )
