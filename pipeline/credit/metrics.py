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
    trajectories: Sequence[Trajectory], credits: Sequence[TrajectoryCredit], *, judged: bool
) -> dict[str, float]:
    """Metrics of one batch; those on verdicts only where the algorithm uses them (``judged``)."""
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
    return {**metrics, **_contribution_metrics(credits)} if judged else metrics


def _contribution_metrics(credits: Sequence[TrajectoryCredit]) -> dict[str, float]:
    searched = [c for c in credits if c.success and len(c.contributions)]
    complete = [c for c in searched if not np.isnan(c.contributions).any()]
    failures = sum(int(np.isnan(c.contributions).sum()) for c in searched)
    return {
        "verdict_failures": float(failures),
        **_mean("failed_verdict_share", (bool(np.isnan(c.contributions).any()) for c in searched)),
        **_mean("no_contribution_share", (not c.contributions.any() for c in complete)),
        **_mean("contributing_rounds_share", (p > 0 for c in complete for p in c.contributions)),
        **_mean(
            "contribution_concentration",
            (contribution_concentration(c.weights) for c in complete if len(c.weights) > 1),
        ),
    }


def contribution_concentration(weights_S: np.ndarray) -> float:
    """Largest share of one round, ``max_t c_t = max_t w_t / S``: 1 is one round, 1/S uniform.

    >>> contribution_concentration(np.array([2.0, 0.0]))
    1.0
    """
    return float(weights_S.max()) / len(weights_S)


def token_summed_credit(trajectory: Trajectory, credit: TrajectoryCredit) -> float:
    """Sum over the policy's tokens of their advantages.

    Weights conserve the mean over ROUNDS; this tells what they do to the sum over tokens.
    """
    lengths = [len(r.token_ids) for r in trajectory.rounds]
    return float(np.dot(lengths, credit.round_advantages))


def _mean(name: str, values: Iterable[float]) -> dict[str, float]:
    collected = [float(v) for v in values]
    return {name: sum(collected) / len(collected)} if collected else {}
