"""Contribution weights: how a trajectory's advantage is spread over its search rounds.

Legend: ``_S`` one value a search round; ``p = u * v`` contribution, ``w`` weight, mean 1.
Source: CW-GRPO (Wang et al., arXiv 2604.14267), contribution weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.types import Verdict

__all__ = [
    "FailedVerdictRule",
    "FailureRule",
    "NoContributionRule",
    "Signal",
    "contribution_weights",
    "contributions",
    "round_weights",
]

NoContributionRule = Literal["uniform", "zero"]
FailedVerdictRule = Literal["uniform", "zero"]
FailureRule = Literal["uniform", "same", "blame"]
Signal = Literal["joint", "utility", "correctness"]


def contributions(verdicts_S: Sequence[Verdict | None], signal: Signal = "joint") -> np.ndarray:
    """float64[S]: ``p_t = u_t * v_t``; NaN where there is no verdict (never 0 by accident).

    The ablations: ``utility`` takes ``u_t`` alone, ``correctness`` ``v_t`` alone.
    """
    attribute = {"joint": "contribution"}.get(signal, signal)
    return np.array(
        [math.nan if v is None else getattr(v, attribute) for v in verdicts_S], np.float64
    )


def round_weights(
    p_S: np.ndarray,
    *,
    success: bool,
    failures: FailureRule = "uniform",
    alpha: float,
    no_contribution: NoContributionRule = "uniform",
    failed_verdict: FailedVerdictRule = "uniform",
) -> np.ndarray:
    """float64[S]: the weights of a success, or of a failure by the rule ``failures``.

    ``uniform`` (the method): all 1. ``same``: weighted like a success, so that the rounds that
    contributed carry the negative advantage. ``blame``: by ``1 - p``, so that the others do.

    >>> p_S = np.array([1.0, 0.0])
    >>> [round_weights(p_S, success=False, failures=f, alpha=math.inf).tolist()
    ...  for f in ("uniform", "same", "blame")]
    [[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]
    """
    if not success and failures == "uniform":
        return np.ones(len(p_S))
    if not success and failures == "blame":
        p_S = 1.0 - (np.nan_to_num(p_S, nan=0.0) if failed_verdict == "zero" else p_S)
    return contribution_weights(
        p_S, alpha=alpha, no_contribution=no_contribution, failed_verdict=failed_verdict
    )


def contribution_weights(
    p_S: np.ndarray,
    *,
    alpha: float,
    no_contribution: NoContributionRule = "uniform",
    failed_verdict: FailedVerdictRule = "uniform",
) -> np.ndarray:
    """float64[S]: the round weights of a SUCCESS (failures are uniform: do not call this).

    ``w_t = exp(alpha p_t) / mean_s exp(alpha p_s)``, so that their mean is 1. At
    ``alpha = inf`` it is ``w_t = p_t / mean_s p_s``: the limit for binary ``p``, and by
    definition for fractional ``p``.

    Where no round contributed at all (``p = 0`` everywhere) the softmax is uniform for every
    finite alpha, and with ``no_contribution="uniform"`` so is its limit; ``"zero"`` is the
    published script's behaviour at ``alpha = inf``: the search rounds get no credit.

    A NaN in ``p_S`` is a round whose judge failed. ``failed_verdict="uniform"`` makes the whole
    trajectory uniform; ``"zero"`` takes that round as ``p = 0``.

    >>> contribution_weights(np.array([1.0, 0.0, 1.0, 0.0]), alpha=math.inf).tolist()
    [2.0, 0.0, 2.0, 0.0]
    >>> contribution_weights(np.array([1.0, 0.0]), alpha=0.0).tolist()
    [1.0, 1.0]
    """
    uniform_S = np.ones(len(p_S))
    failed_S = np.isnan(p_S)
    if len(p_S) == 0 or alpha == 0 or (failed_verdict == "uniform" and failed_S.any()):
        return uniform_S
    p_S = np.where(failed_S, 0.0, p_S)
    if math.isinf(alpha):
        if not p_S.any():
            return uniform_S if no_contribution == "uniform" else np.zeros(len(p_S))
        p_S = p_S / p_S.max()  # the mean of tiny contributions would underflow
        return p_S / p_S.mean()
    scores_S = np.exp(alpha * (p_S - p_S.max()))  # largest is 1: cannot overflow
    return scores_S / scores_S.mean()
