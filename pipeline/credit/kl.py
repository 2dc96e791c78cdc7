"""Estimators of the KL divergence from a frozen reference, for numpy and torch alike.

Source: Schulman, "Approximating KL divergence" (2020). With ``d = log pi_ref - log pi`` on
tokens sampled from pi: ``k1 = -d`` (unbiased, may be negative), ``k2 = d^2 / 2`` (biased, low
variance), ``k3 = exp(d) - d - 1`` (unbiased, never negative).

Legend: ``_P`` one value a token the policy sampled.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

__all__ = ["KlEstimator", "kl_divergence", "trajectory_kl"]

KlEstimator = Literal["k1", "k2", "k3"]


def kl_divergence(logprobs_P: Any, reference_logprobs_P: Any, estimator: KlEstimator) -> Any:
    """One estimate a token; arrays or tensors, of the type that came in.

    As a LOSS (differentiated) only k2 and k3 push the policy back: the expected gradient of k1
    is 0, since it is that of ``E[log pi]`` under pi. As a REWARD all three do.

    >>> kl_divergence(np.array([0.0]), np.array([0.5]), "k2").tolist()
    [0.125]
    """
    difference_P = reference_logprobs_P - logprobs_P
    match estimator:
        case "k1":
            return -difference_P
        case "k2":
            return 0.5 * difference_P**2
        case "k3":
            exp = np.exp if isinstance(difference_P, np.ndarray) else _torch_exp
            return exp(difference_P) - difference_P - 1.0
    raise ValueError(f"unknown KL estimator {estimator!r}")


def trajectory_kl(
    sampler_logprobs_L: np.ndarray,
    reference_logprobs_L: np.ndarray,
    loss_mask_L: np.ndarray,
    estimator: KlEstimator,
) -> float:
    """Sum over the policy's tokens of one trajectory, for a penalty in the reward."""
    per_token = kl_divergence(
        sampler_logprobs_L.astype(np.float64), reference_logprobs_L.astype(np.float64), estimator
    )
    return float(per_token[loss_mask_L].sum())


def _torch_exp(values: Any) -> Any:
    return values.exp()
