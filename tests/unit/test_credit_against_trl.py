"""Losses agree with TRL's GRPO trainer on the same batch, with weighted rounds among others.

TRL is the independent implementation: its own loss function runs here, on log-probabilities that
both sides are given, so that any difference is one of formulas. TRL computes advantages and
correction factors inside its generation step, which cannot be called alone: their formulas are
written out in these tests as they stand there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.loss_metrics import LossMetrics, micro_batch_loss
from pipeline.batch import MicroBatch, make_rank_batches
from pipeline.config import AlgorithmConfig, CorrectionConfig
from pipeline.credit import CreditResult, build_algorithm
from pipeline.credit.advantage import group_advantages
from tests.support.credit_cases import group, trajectory

trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")

MAX_LENGTH = 32.0


@dataclass
class Peer:
    """What TRL's loss reads of its trainer, in evaluation mode (no accumulation of steps)."""

    table: torch.Tensor  # float64[n, L-1], log-probabilities
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0
    corrected: bool = False
    aux_loss_enabled: bool = False
    top_entropy_quantile: float = 1.0
    off_policy_mask_threshold: float | None = None
    vllm_importance_sampling_correction: bool = True
    _entropy_bonus_enabled: bool = False
    max_completion_length: float = MAX_LENGTH
    current_gradient_accumulation_steps: int = 1
    model: Any = field(default_factory=lambda: SimpleNamespace(training=False))
    args: Any = field(
        default_factory=lambda: SimpleNamespace(use_bias_correction_kl=False, delta=None)
    )

    def __post_init__(self) -> None:
        self.use_vllm = self.corrected
        self._metrics = {"eval": defaultdict(list)}
        self.accelerator = SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        )

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
        return self.table, torch.zeros_like(self.table), None


def batch(config: AlgorithmConfig) -> CreditResult:
    """Three groups of unequal lengths, two of them with weighted successes."""
    groups = [
        group(
            trajectory(reward=1.0, verdicts=[(1, 1), (0, 1)], tokens=[5 + g, 3, 4], group_id=g),
            trajectory(reward=0.0, verdicts=[(0, 0)], tokens=[4, 2 + g], group_id=g, sample_id=1),
            trajectory(reward=0.0, tokens=[6], group_id=g, sample_id=2),
        )
        for g in range(3)
    ]
    return build_algorithm(config).credit(groups)


def compare(
    config: AlgorithmConfig, correction: CorrectionConfig | None = None, **peer: Any
) -> None:
    """Loss and gradient with respect to every log-probability, ours against TRL's."""
    result = batch(config)
    samples = list(result.samples)
    length = max(len(s.token_ids) for s in samples)
    mask = torch.zeros(len(samples), length, dtype=torch.float64)
    sampler, advantages = mask.clone(), mask.clone()
    for i, s in enumerate(samples):
        mask[i, : len(s.loss_mask)] = torch.tensor(s.loss_mask)
        sampler[i, : len(s.loss_mask)] = torch.tensor(s.sampler_logprobs)
        advantages[i, : len(s.loss_mask)] = torch.tensor(s.advantages)
    noise = torch.Generator().manual_seed(0)
    table = sampler + 0.3 * torch.randn(mask.shape, generator=noise, dtype=torch.float64) * mask
    proximal = sampler + 0.2 * torch.randn(mask.shape, generator=noise, dtype=torch.float64) * mask
    reference = sampler + 0.5 * torch.randn(mask.shape, generator=noise, dtype=torch.float64) * mask
    samples = [
        with_logprobs(s, proximal[i], reference[i], config, correction)
        for i, s in enumerate(samples)
    ]
    (micro_batch,) = make_rank_batches(samples, result.normaliser, 1, 10_000)[0].micro_batches

    own = table.clone().requires_grad_()
    loss = ours(micro_batch, own, config, correction, result.normaliser)
    loss.backward()

    theirs = table.clone().requires_grad_()
    inputs = {
        "prompt_ids": torch.zeros(len(samples), 1),
        "prompt_mask": torch.ones(len(samples), 1),
        "completion_ids": torch.zeros(mask[:, 1:].shape),
        "completion_mask": mask[:, 1:],
        "advantages": advantages[:, 1:],
        "old_per_token_logps": (proximal if correction else sampler)[:, 1:],
        "ref_per_token_logps": reference[:, 1:],
        "num_items_in_batch": mask.sum(),
    }
    if correction is not None:
        log_ratio = ((proximal - sampler) * mask)[:, 1:]
        if correction.level == "sequence":
            log_ratio = log_ratio.sum(-1, keepdim=True)
        ratio = torch.exp(log_ratio)
        outside = (ratio < correction.low) | (ratio > correction.high)
        cut = ratio.clamp(max=correction.high)
        inputs["importance_sampling_ratio"] = (
            cut if correction.kind == "truncated" else ratio.masked_fill(outside, 0.0)
        )
    made = Peer(theirs[:, 1:], corrected=correction is not None, **peer)
    expected = trainer.GRPOTrainer._compute_loss(made, None, inputs)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)
    assert own.grad is not None and theirs.grad is not None
    torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert theirs.grad.abs().max() > 1e-3


def with_logprobs(
    sample: Any,
    proximal: torch.Tensor,
    reference: torch.Tensor,
    config: AlgorithmConfig,
    correction: CorrectionConfig | None,
) -> Any:
    from dataclasses import replace

    n = len(sample.token_ids)
    return replace(
        sample,
        proximal_logprobs=proximal[:n].numpy().astype(np.float32) if correction else None,
        ref_logprobs=reference[:n].numpy().astype(np.float32) if config.kl_coef else None,
    )


def ours(
    micro_batch: MicroBatch,
    table: torch.Tensor,
    config: AlgorithmConfig,
    correction: CorrectionConfig | None,
    normaliser: float,
) -> torch.Tensor:
    logprobs_P = table[torch.tensor(micro_batch.sample_P), torch.tensor(micro_batch.place_P)]
    return micro_batch_loss(
        micro_batch,
        logprobs_P,
        torch.zeros_like(logprobs_P),
        build_algorithm(config, correction).objective,
        normaliser,
        LossMetrics(),
    )


def test_the_token_mean_of_the_clipped_surrogate_with_weighted_rounds() -> None:
    compare(AlgorithmConfig(clip_high=0.28), loss_type="dapo", epsilon_high=0.28)


def test_the_sequence_mean() -> None:
    compare(AlgorithmConfig(aggregation="sequence_mean"), loss_type="grpo")


def test_dr_grpos_constant() -> None:
    config = AlgorithmConfig(scale="none", aggregation="constant", constant_normaliser=MAX_LENGTH)
    compare(config, loss_type="dr_grpo")


def test_gspos_sequence_ratio() -> None:
    config = AlgorithmConfig(
        credit="uniform", loss="gspo", aggregation="sequence_mean", clip_low=0.05, clip_high=0.06
    )
    compare(
        config,
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon_low=0.05,
        epsilon_high=0.06,
    )


def test_cispo() -> None:
    config = AlgorithmConfig(loss="cispo", clip_low=1.0, clip_high=0.1)
    compare(config, loss_type="cispo", epsilon_high=1.1)


def test_the_kl_term_in_the_loss() -> None:
    compare(AlgorithmConfig(kl_coef=0.3), loss_type="dapo", beta=0.3)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["truncated", "masked"])
def test_the_off_policy_correction(kind: str, level: str) -> None:
    correction = CorrectionConfig(proximal="recomputed", kind=kind, level=level, low=0.7, high=1.1)
    compare(AlgorithmConfig(), correction, loss_type="dapo")


def test_group_advantages_but_for_the_epsilon() -> None:
    # TRL computes them inside its generation step; these are its lines, for four rewards
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.0])
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    made = group_advantages(rewards.numpy())
    np.testing.assert_allclose(made, expected.numpy(), rtol=3e-4)
