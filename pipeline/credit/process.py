"""Process rewards: a round's own advantage, added to that of the outcome.

The alternative that the paper argues against: the verdicts are rewards themselves, not a way
to divide the outcome's advantage. Without a learned value function it is the turn-level credit
of MT-GRPO (Zeng et al., arXiv 2505.11821) for any number of rounds.

Legend: ``_S`` one value a search round of one trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.credit.advantage import STD_EPSILON

__all__ = ["process_advantages"]


def process_advantages(
    p: Sequence[np.ndarray], *, norm_by_std: bool, failed_as_zero: bool
) -> list[np.ndarray]:
    """float64[S] a trajectory: each round's ``p`` against all search rounds of the group.

    ``(p - mean) / (std + 1e-6)``, or ``p - mean`` without the division. A trajectory with a NaN
    (a failed verdict) gets zeros and is left out of mean and deviation, unless
    ``failed_as_zero``: then that round is ``p = 0``.

    >>> rounds = [np.array([1.0, 0.0]), np.array([0.5])]
    >>> [a.tolist() for a in process_advantages(rounds, norm_by_std=False, failed_as_zero=False)]
    [[0.5, -0.5], [0.0]]
    """
    if failed_as_zero:
        p = [np.nan_to_num(p_S, nan=0.0) for p_S in p]
    known = [p_S for p_S in p if not np.isnan(p_S).any()]
    pooled = np.concatenate(known) if known else np.zeros(0)
    if len(pooled) < 2 or (pooled == pooled[0]).all():
        return [np.zeros(len(p_S)) for p_S in p]
    scale = pooled.std(ddof=1) + STD_EPSILON if norm_by_std else 1.0
    return [
        np.zeros(len(p_S)) if np.isnan(p_S).any() else (p_S - pooled.mean()) / scale for p_S in p
    ]
