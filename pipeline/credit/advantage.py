"""Advantages of trajectories: how much better one did than its siblings, or than the batch.

An estimator is a baseline (``group``, ``leave_one_out`` or ``none``) and a scale (``group_std``,
``batch`` or ``none``). Those of the field:

=================== ============= ========= =====================================================
algorithm           baseline      scale     source
=================== ============= ========= =====================================================
GRPO                group         group_std Shao et al., arXiv 2402.03300
Dr. GRPO            group         none      Liu et al., arXiv 2503.20783
RLOO                leave_one_out none      Ahmadian et al., arXiv 2402.14740
REINFORCE++         none          batch     Hu et al., arXiv 2501.03262
REINFORCE++-baseline group        batch     the same
=================== ============= ========= =====================================================

Legend: ``_G`` one value a trajectory of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

__all__ = ["STD_EPSILON", "Baseline", "Scale", "advantages", "group_advantages"]

Baseline = Literal["group", "leave_one_out", "none"]
Scale = Literal["group_std", "batch", "none"]

STD_EPSILON = 1e-6


def advantages(
    rewards: Sequence[np.ndarray], *, baseline: Baseline = "group", scale: Scale = "group_std"
) -> list[np.ndarray]:
    """float64[G] a group of the batch.

    ``scale="batch"`` subtracts the mean of all trajectories of the batch and divides by their
    standard deviation (each trajectory counts once, however long it is).

    >>> [a.tolist() for a in advantages([np.array([1., 0.]), np.array([0., 0.])], scale="none")]
    [[0.5, -0.5], [0.0, 0.0]]
    """
    grouped = [group_advantages(r, baseline=baseline, scale=scale) for r in rewards]
    if scale != "batch" or not grouped:
        return grouped
    whole = _standardised(np.concatenate(grouped))
    return np.split(whole, np.cumsum([len(g) for g in grouped])[:-1])


def group_advantages(
    rewards_G: np.ndarray, *, baseline: Baseline = "group", scale: Scale = "group_std"
) -> np.ndarray:
    """float64[G] as far as a group alone tells (with ``scale="batch"``: before that scaling).

    With the defaults ``A_i = (r_i - mean(r)) / (std(r) + 1e-6)``. ``std`` is the sample standard
    deviation (divisor G - 1), as in verl and TRL, on which the published scripts run.
    ``leave_one_out`` subtracts the mean of the OTHER trajectories. With a baseline, rewards that
    are all equal, or a single one, give exactly 0: there is nothing to compare.

    >>> group_advantages(np.array([1.0, 0.0, 0.0, 1.0]), scale="none").tolist()
    [0.5, -0.5, -0.5, 0.5]
    >>> group_advantages(np.array([0.3, 0.3, 0.3])).tolist()
    [0.0, 0.0, 0.0]
    """
    rewards_G = np.asarray(rewards_G, dtype=np.float64)
    if not np.isfinite(rewards_G).all():
        raise ValueError(f"rewards must be finite, got {rewards_G.tolist()}")
    if baseline == "none":
        return rewards_G
    if len(rewards_G) < 2 or (rewards_G == rewards_G[0]).all():
        return np.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    if baseline == "leave_one_out":
        centred_G = centred_G * (len(rewards_G) / (len(rewards_G) - 1))
    if scale != "group_std":
        return centred_G
    return centred_G / (rewards_G.std(ddof=1) + STD_EPSILON)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over the batch; exactly 0 where all are equal."""
    if len(values) < 2 or (values == values[0]).all():
        return np.zeros_like(values)
    return (values - values.mean()) / (values.std(ddof=1) + STD_EPSILON)
