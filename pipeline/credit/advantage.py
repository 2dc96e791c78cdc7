"""Group-relative advantages: how much better one trajectory did than its siblings.

Legend: ``_G`` one value a trajectory of a group.
Source: GRPO (Shao et al., arXiv 2402.03300); ``norm_by_std=False`` is Dr. GRPO's
variant (Liu et al., arXiv 2503.20783).
"""

from __future__ import annotations

import numpy as np

__all__ = ["STD_EPSILON", "group_advantages"]

STD_EPSILON = 1e-6


def group_advantages(rewards_G: np.ndarray, *, norm_by_std: bool = True) -> np.ndarray:
    """float64[G]: ``A_i = (r_i - mean(r)) / (std(r) + 1e-6)``.

    ``std`` is the sample standard deviation (divisor G - 1), as in verl and TRL, on which the
    published scripts run. With ``norm_by_std=False`` the division is dropped. Rewards that are
    all equal, or a single one, give exactly 0 everywhere: there is nothing to compare.

    >>> group_advantages(np.array([1.0, 0.0, 0.0, 1.0]), norm_by_std=False).tolist()
    [0.5, -0.5, -0.5, 0.5]
    >>> group_advantages(np.array([0.3, 0.3, 0.3])).tolist()
    [0.0, 0.0, 0.0]
    """
    rewards_G = np.asarray(rewards_G, dtype=np.float64)
    if not np.isfinite(rewards_G).all():
        raise ValueError(f"rewards must be finite, got {rewards_G.tolist()}")
    if len(rewards_G) < 2 or (rewards_G == rewards_G[0]).all():
        return np.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    if not norm_by_std:
        return centred_G
    return centred_G / (rewards_G.std(ddof=1) + STD_EPSILON)
