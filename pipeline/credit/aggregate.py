"""How token losses become one number: a weight a trajectory and ONE normaliser a batch.

The loss of a batch is ``sum(loss_weight * token_loss) / normaliser`` over all its trained
tokens, however they are cut into micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

__all__ = ["Aggregation", "aggregate"]

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def aggregate(
    token_counts: Sequence[int], aggregation: Aggregation, *, constant: float = 0.0
) -> tuple[np.ndarray, float]:
    """``(weight of every token of trajectory i, float64[n]; normaliser)``.

    ``token_counts`` are the policy's tokens of ALL trajectories of the batch: also of those
    that are not sent to the learner because their gradient is zero.

    =============== ============================ =================== =========================
    aggregation     weight                       normaliser          source
    =============== ============================ =================== =========================
    token_mean      1                            tokens of the batch DAPO, arXiv 2503.14476
    sequence_mean   1 / tokens of its trajectory trajectories        GRPO, arXiv 2402.03300
    constant        1                            ``constant`` times  Dr. GRPO, arXiv 2503.20783:
                                                 trajectories        a fixed length for all
    =============== ============================ =================== =========================

    >>> aggregate([2, 8], "sequence_mean")
    (array([0.5  , 0.125]), 2.0)
    """
    counts = np.asarray(token_counts, dtype=np.float64)
    ones = np.ones(len(counts))
    match aggregation:
        case "token_mean":
            return ones, max(float(counts.sum()), 1.0)
        case "sequence_mean":
            return ones / np.maximum(counts, 1.0), max(float((counts > 0).sum()), 1.0)
        case "constant":
            if not constant > 0:
                raise ValueError(f"the constant normaliser must be positive, got {constant}")
            return ones, float(constant) * max(float((counts > 0).sum()), 1.0)
    raise ValueError(f"unknown aggregation {aggregation!r}")
