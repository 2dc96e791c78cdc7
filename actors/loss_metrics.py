"""The loss of a micro-batch, and the metrics of a whole batch over all ranks.

Legend: ``_P`` one value a trained token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import MicroBatch
from pipeline.credit.correction import Factors, correction_factors
from pipeline.credit.kl import kl_divergence
from pipeline.credit.losses import SurrogateLoss, policy_loss
from pipeline.credit.objective import Objective
from pipeline.credit.off_policy import off_policy_metrics

__all__ = ["LossMetrics", "micro_batch_loss"]

_MEANS = (
    "ratio_mean",
    "approx_kl",
    "entropy",
    "kl_reference",
    "logprob_difference_mean",
)
_MAXIMA = ("ratio_max", "logprob_difference_max")
_OFF_POLICY = ("sampler_ratio", "level_ratio", "factor", "cut", "clipped", "staleness")


@dataclass(slots=True)
class LossMetrics:
    """Sums and maxima over the trained tokens of a batch, and what its quantiles need.

    ``version`` is that of the weights which the train step starts from.
    """

    version: int = 0
    loss: float = 0.0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_MEANS, 0.0))
    maxima: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_MAXIMA, 0.0))
    off_policy: list[np.ndarray] = field(default_factory=list)  # float32[len(_OFF_POLICY), P] each

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

    def add_off_policy(
        self, ratio_P: Tensor, factors: Factors, clipped_P: Tensor, versions_P: np.ndarray
    ) -> None:
        """Add one micro-batch's ratios of the current policy over the sampler, what was made of
        them, and what the clip cut."""
        staleness_P = torch.as_tensor(self.version - versions_P, device=ratio_P.device)
        cut_P = factors.cut_P
        values = (ratio_P, factors.ratio_P, factors.factor_P, cut_P, clipped_P, staleness_P)
        self.off_policy.append(torch.stack([v.float() for v in values]).cpu().numpy())

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
            **off_policy_metrics(*self._off_policy_of_all_ranks()),
        }

    def _off_policy_of_all_ranks(self) -> np.ndarray:
        """float32[len(_OFF_POLICY), P]."""
        own = np.concatenate([np.zeros((len(_OFF_POLICY), 0), np.float32), *self.off_policy], 1)
        parts = [own] * torch.distributed.get_world_size()
        if len(parts) > 1:
            torch.distributed.all_gather_object(parts, own)
        return np.concatenate(parts, axis=1)


def micro_batch_loss(
    micro_batch: MicroBatch,
    logprobs_P: Tensor,
    entropy_P: Tensor,
    objective: Objective,
    normaliser: float,
    metrics: LossMetrics,
) -> Tensor:
    """``sum(loss_weight * (factor * token_loss + kl_coef * kl)) / normaliser``."""
    device, current_P = logprobs_P.device, logprobs_P.detach()
    sampler_P = torch.tensor(micro_batch.sampler_logprobs_P, device=device)
    weights_P = torch.tensor(micro_batch.loss_weights_P, device=device)
    old_P = _denominator(micro_batch, objective, current_P, sampler_P)
    surrogate = policy_loss(
        objective.loss,
        logprobs_P,
        old_P,
        torch.tensor(micro_batch.advantages_P, device=device),
        torch.tensor(micro_batch.sample_P, device=device),
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
    )
    factors = correction_factors(
        # the proximal policy, or without one the current: metrics then tell how far data is off
        old_P if objective.recompute_proximal else current_P,
        sampler_P,
        torch.tensor(micro_batch.round_P, device=device),
        torch.tensor(micro_batch.sample_P, device=device),
        objective.correction,
    )
    token_loss_P = surrogate.token_loss_P
    if objective.correction.kind != "none":
        token_loss_P = factors.factor_P * token_loss_P
    values_P = _values(surrogate, current_P, old_P, sampler_P, entropy_P)
    if objective.loss_kl_coef > 0:
        kl_P = kl_divergence(logprobs_P, _reference(micro_batch, device), objective.kl_estimator)
        token_loss_P = token_loss_P + objective.loss_kl_coef * kl_P
        values_P["kl_reference"] = kl_P.detach()
    loss = (weights_P * token_loss_P).sum() / normaliser
    metrics.add(loss.detach(), values_P)
    ratio_P = torch.exp(current_P - sampler_P)
    metrics.add_off_policy(ratio_P, factors, surrogate.clipped_P, micro_batch.versions_P)
    return loss


def _denominator(
    micro_batch: MicroBatch, objective: Objective, current_P: Tensor, sampler_P: Tensor
) -> Tensor:
    """``log pi_old``: the sampler's, or the proximal policy's, which is the current one where the
    train step has a single optimizer step."""
    if not objective.recompute_proximal:
        return sampler_P
    if micro_batch.proximal_logprobs_P is None:
        return current_P
    return torch.tensor(micro_batch.proximal_logprobs_P, device=current_P.device)


def _values(
    surrogate: SurrogateLoss, current_P: Tensor, old_P: Tensor, sampler_P: Tensor, entropy_P: Tensor
) -> dict[str, Tensor]:
    """Per-token metrics by name."""
    difference_P = (current_P - sampler_P).abs()
    return {
        "ratio_mean": surrogate.ratio_P,
        "ratio_max": surrogate.ratio_P,
        # KL(old || current), sampled from old
        "approx_kl": kl_divergence(old_P, current_P, "k3"),
        "entropy": entropy_P,
        "logprob_difference_mean": difference_P,
        "logprob_difference_max": difference_P,
    }


def _reference(micro_batch: MicroBatch, device: torch.device) -> Tensor:
    if micro_batch.ref_logprobs_P is None:
        raise ValueError("kl_coef > 0 needs samples with reference log-probabilities")
    return torch.tensor(micro_batch.ref_logprobs_P, device=device)
