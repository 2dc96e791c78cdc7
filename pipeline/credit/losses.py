"""Token losses of the policy and what is measured on the way.

Legend: ``_P`` one value a trained token (the P tokens of a micro-batch the policy sampled).
All functions are element-wise; weights and the normaliser are applied by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SurrogateLoss", "clipped_surrogate", "k3_kl", "weighted_nll"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateLoss:
    """The clipped surrogate of P tokens, and what its metrics need (detached)."""

    token_loss_P: Tensor  # differentiable
    ratio_P: Tensor  # pi_theta / pi_old
    clipped_P: Tensor  # bool: the clip cut the gradient here


def clipped_surrogate(
    logprobs_P: Tensor,
    old_logprobs_P: Tensor,
    advantages_P: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> SurrogateLoss:
    """``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)``, ``rho = exp(lp - old)``.

    Source: PPO (Schulman et al., arXiv 1707.06347); asymmetric bounds: DAPO.
    A token counts as clipped where the clipped branch is the smaller one and differs, which is
    where its gradient vanishes.

    >>> loss = clipped_surrogate(torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([2.0]),
    ...                          clip_low=0.2, clip_high=0.2)
    >>> round(float(loss.token_loss_P), 6), bool(loss.clipped_P)
    (-2.4, True)
    """
    ratio_P = torch.exp(logprobs_P - old_logprobs_P)
    unclipped_P = ratio_P * advantages_P
    bounded_P = torch.clamp(ratio_P, 1.0 - clip_low, 1.0 + clip_high) * advantages_P
    return SurrogateLoss(
        token_loss_P=-torch.minimum(unclipped_P, bounded_P),
        ratio_P=ratio_P.detach(),
        clipped_P=(bounded_P < unclipped_P).detach(),
    )


def weighted_nll(logprobs_P: Tensor, advantages_P: Tensor) -> Tensor:
    """``-A log pi``: supervised learning where ``A = 1`` (rejection-sampling fine-tuning)."""
    return -advantages_P * logprobs_P


def k3_kl(logprobs_P: Tensor, reference_logprobs_P: Tensor) -> Tensor:
    """``exp(ref - lp) - (ref - lp) - 1 >= 0``: unbiased, low variance, for ``KL(pi || ref)``.

    Source: Schulman, "Approximating KL divergence" (2020), estimator k3.
    """
    difference_P = reference_logprobs_P - logprobs_P
    return torch.exp(difference_P) - difference_P - 1.0
