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

__all__ = ["FailedVerdictRule", "NoContributionRule", "contribution_weights", "contributions"]

NoContributionRule = Literal["uniform", "zero"]
FailedVerdictRule = Literal["uniform", "zero"]


def contributions(verdicts_S: Sequence[Verdict | None]) -> np.ndarray:
    """float64[S]: ``p_t = u_t * v_t``; NaN where there is no verdict (never 0 by accident)."""
    return np.array([math.nan if v is None else v.contribution for v in verdicts_S], np.float64)


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
