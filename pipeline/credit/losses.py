"""Token losses of the policy and what is measured on the way.

Legend: ``_P`` one value a trained token (the P tokens of a micro-batch the policy sampled).
Weights, correction factors and the normaliser are applied by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.credit.objective import PolicyLoss
from pipeline.credit.units import unit_mean

__all__ = ["SurrogateLoss", "policy_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateLoss:
    """The loss of P tokens, and what its metrics need (detached)."""

    token_loss_P: Tensor  # differentiable
    ratio_P: Tensor  # pi_theta / pi_old, of the token or, with gspo, of its trajectory
    clipped_P: Tensor  # bool: the clip cut or bounded this token's gradient


def policy_loss(
    loss: PolicyLoss,
    logprobs_P: Tensor,
    old_logprobs_P: Tensor,
    advantages_P: Tensor,
    sequence_P: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> SurrogateLoss:
    """The loss by name. ``sequence_P`` are int64 ids, equal within a trajectory.

    With ``rho = exp(lp - old)`` and clip bounds ``[1 - clip_low, 1 + clip_high]``:

    ======== ============================================== ======================================
    ppo_clip ``-min(rho A, clip(rho) A)``                   PPO, arXiv 1707.06347; asymmetric: DAPO
    gspo     the same with ``s = exp(mean over trajectory   GSPO-token, arXiv 2507.18071: value s,
             of (lp - old))`` for ``rho``                   gradient of each token's own lp
    cispo    ``-stopgrad(clip(rho)) A lp``                  MiniMax-M1, arXiv 2506.13585
    nll      ``-A lp``                                      supervised where A = 1
    ======== ============================================== ======================================

    >>> one = torch.tensor([0.0])
    >>> made = policy_loss("ppo_clip", one + 0.5, one, one + 2.0, torch.tensor([0]),
    ...                    clip_low=0.2, clip_high=0.2)
    >>> round(float(made.token_loss_P), 6), bool(made.clipped_P)
    (-2.4, True)
    """
    log_ratio_P = logprobs_P - old_logprobs_P
    match loss:
        case "ppo_clip":
            return _clipped(torch.exp(log_ratio_P), advantages_P, clip_low, clip_high)
        case "gspo":
            mean_P = unit_mean(log_ratio_P.detach(), sequence_P)
            ratio_P = torch.exp(mean_P + logprobs_P - logprobs_P.detach())
            return _clipped(ratio_P, advantages_P, clip_low, clip_high)
        case "cispo":
            ratio_P = torch.exp(log_ratio_P.detach())
            bounded_P = ratio_P.clamp(1.0 - clip_low, 1.0 + clip_high)
            return SurrogateLoss(
                token_loss_P=-bounded_P * advantages_P * logprobs_P,
                ratio_P=ratio_P,
                clipped_P=bounded_P != ratio_P,
            )
        case "nll":
            ratio_P = torch.exp(log_ratio_P.detach())
            return SurrogateLoss(
                token_loss_P=-advantages_P * logprobs_P,
                ratio_P=ratio_P,
                clipped_P=torch.zeros_like(ratio_P, dtype=torch.bool),
            )
    raise ValueError(f"unknown loss {loss!r}")


def _clipped(
    ratio_P: Tensor, advantages_P: Tensor, clip_low: float, clip_high: float
) -> SurrogateLoss:
    """``-min(rho A, clip(rho) A)``. A token counts as clipped where the clipped branch is the
    smaller one and differs, which is where its gradient vanishes."""
    unclipped_P = ratio_P * advantages_P
    bounded_P = torch.clamp(ratio_P, 1.0 - clip_low, 1.0 + clip_high) * advantages_P
    return SurrogateLoss(
        token_loss_P=-torch.minimum(unclipped_P, bounded_P),
        ratio_P=ratio_P.detach(),
        clipped_P=(bounded_P < unclipped_P).detach(),
    )
