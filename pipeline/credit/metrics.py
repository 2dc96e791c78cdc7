"""What is measured of credit assignment (meanings: docs/algorithms.md).

A measure that has nothing to be taken over in a batch is left out, never reported as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.credit.result import TrajectoryCredit
from pipeline.types import Trajectory

__all__ = ["contribution_concentration", "credit_metrics", "token_summed_credit"]


def credit_metrics(
    trajectories: Sequence[Trajectory],
    credits: Sequence[TrajectoryCredit],
    *,
    asked: Sequence[bool] | None,
) -> dict[str, float]:
    """Metrics of one batch. ``asked`` says of each trajectory whether the algorithm needs its
    verdicts; ``None``, and nothing is reported of verdicts: it never needs any."""
    summed = [token_summed_credit(t, c) for t, c in zip(trajectories, credits, strict=True)]
    metrics = {
        **_mean("success_share", (c.success for c in credits)),
        **_mean("zero_advantage_share", (c.advantage == 0 for c in credits)),
        **_mean("token_summed_credit", summed),
        **_mean(
            "token_summed_credit_successes",
            (value for value, c in zip(summed, credits, strict=True) if c.success),
        ),
    }
    if asked is None:
        return metrics
    needed = [c for c, wanted in zip(credits, asked, strict=True) if wanted]
    return {**metrics, **_contribution_metrics(needed)}


def _contribution_metrics(needed: Sequence[TrajectoryCredit]) -> dict[str, float]:
    """``needed``: the trajectories that had to be judged."""
    failures = sum(int(np.isnan(c.contributions).sum()) for c in needed)
    complete = [c for c in needed if c.success and not np.isnan(c.contributions).any()]
    return {
        "verdict_failures": float(failures),
        **_mean("failed_verdict_share", (bool(np.isnan(c.contributions).any()) for c in needed)),
        **_mean("no_contribution_share", (not c.contributions.any() for c in complete)),
        **_mean("contributing_rounds_share", (p > 0 for c in complete for p in c.contributions)),
        **_mean(
            "contribution_concentration",
            (
                contribution_concentration(c.contributions)
                for c in complete
                if len(c.contributions) > 1 and c.contributions.any()
            ),
        ),
    }


def contribution_concentration(p_S: np.ndarray) -> float:
    """Largest share of one round in the contributions, ``max_t p_t / sum_s p_s``: 1 is one round,
    1/S all alike. It is a fact about the trajectory, whatever ``alpha`` makes of it.

    >>> contribution_concentration(np.array([1.0, 0.0])), contribution_concentration(np.ones(2))
    (1.0, 0.5)
    """
    return float(p_S.max() / p_S.sum())


def token_summed_credit(trajectory: Trajectory, credit: TrajectoryCredit) -> float:
    """Sum over the policy's tokens of their advantages.

    Weights conserve the mean over ROUNDS; this tells what they do to the sum over tokens.
    """
    lengths = [len(r.token_ids) for r in trajectory.rounds]
    return float(np.dot(lengths, credit.round_advantages))


def _mean(name: str, values: Iterable[float]) -> dict[str, float]:
    collected = [float(v) for v in values]
    return {name: sum(collected) / len(collected)} if collected else {}
