"""The loss of a micro-batch, and the metrics of a whole batch over all ranks.

Legend: ``_P`` one value a trained token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.batch import MicroBatch
from pipeline.credit.losses import clipped_surrogate, k3_kl, weighted_nll
from pipeline.credit.objective import Objective

__all__ = ["LossMetrics", "micro_batch_loss"]

_MEANS = (
    "ratio_mean",
    "clip_fraction",
    "approx_kl",
    "entropy",
    "kl_reference",
    "logprob_difference_mean",
)
_MAXIMA = ("ratio_max", "logprob_difference_max")


@dataclass(slots=True)
class LossMetrics:
    """Sums and maxima over the trained tokens of a batch."""

    loss: float = 0.0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_MEANS, 0.0))
    maxima: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_MAXIMA, 0.0))

    def add(self, loss: Tensor, values_P: dict[str, Tensor]) -> None:
        """Add one micro-batch: its part of the loss and its per-token values."""
        self.loss += float(loss)
        tokens = len(values_P["ratio_mean"])
        self.tokens += tokens
        for name in _MEANS:
            if name in values_P:
                self.sums[name] += float(values_P[name].double().sum())
        for name in _MAXIMA:
            if tokens:
                self.maxima[name] = max(self.maxima[name], float(values_P[name].max()))

    def reduced(self, device: torch.device) -> dict[str, float]:
        """Totals over all ranks (a collective): means over trained tokens, maxima, loss."""
        totals = torch.tensor(
            [self.loss, self.tokens, *self.sums.values()], dtype=torch.float64, device=device
        )
        maxima = torch.tensor([*self.maxima.values()], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(totals)
        torch.distributed.all_reduce(maxima, op=torch.distributed.ReduceOp.MAX)
        loss, tokens, *sums = totals.tolist()
        means = (value / max(tokens, 1.0) for value in sums)
        return {
            "loss": loss,
            "trained_tokens": tokens,
            **dict(zip(self.sums, means, strict=True)),
            **dict(zip(self.maxima, maxima.tolist(), strict=True)),
        }


def micro_batch_loss(
    micro_batch: MicroBatch,
    logprobs_P: Tensor,
    entropy_P: Tensor,
    objective: Objective,
    normaliser: float,
    metrics: LossMetrics,
) -> Tensor:
    """``sum(loss_weight * (surrogate + kl_coef * k3)) / normaliser`` of one micro-batch."""
    device = logprobs_P.device
    old_P = torch.tensor(micro_batch.old_logprobs_P, device=device)
    sampler_P = torch.tensor(micro_batch.sampler_logprobs_P, device=device)
    weights_P = torch.tensor(micro_batch.loss_weights_P, device=device)
    advantages_P = torch.tensor(micro_batch.advantages_P, device=device)
    surrogate = clipped_surrogate(
        logprobs_P,
        old_P,
        advantages_P,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
    )
    token_loss_P = surrogate.token_loss_P
    if objective.loss == "nll":
        token_loss_P = weighted_nll(logprobs_P, advantages_P)
    logprobs = logprobs_P.detach()
    difference_P = (logprobs - sampler_P).abs()
    values_P = {
        "ratio_mean": surrogate.ratio_P,
        "ratio_max": surrogate.ratio_P,
        "clip_fraction": surrogate.clipped_P,
        "approx_kl": k3_kl(old_P, logprobs),  # KL(old || current), sampled from old
        "entropy": entropy_P,
        "logprob_difference_mean": difference_P,
        "logprob_difference_max": difference_P,
    }
    if objective.kl_coef > 0:
        reference_P = _reference(micro_batch, device)
        kl_P = k3_kl(logprobs_P, reference_P)
        token_loss_P = token_loss_P + objective.kl_coef * kl_P
        values_P["kl_reference"] = kl_P.detach()
    loss = (weights_P * token_loss_P).sum() / normaliser
    metrics.add(loss.detach(), values_P)
    return loss


def _reference(micro_batch: MicroBatch, device: torch.device) -> Tensor:
    if micro_batch.ref_logprobs_P is None:
        raise ValueError("kl_coef > 0 needs samples with reference log-probabilities")
    return torch.tensor(micro_batch.ref_logprobs_P, device=device)
