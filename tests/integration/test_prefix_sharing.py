"""Sharing prefixes computes what padding computes: loss and gradient, parameter by parameter.

Neither DeepSpeed nor an optimizer is in between, so that gradients are compared themselves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.loss_metrics import LossMetrics, micro_batch_loss
from actors.policy_model import load_policy
from actors.policy_scorer import PolicyScorer, scorer_input
from actors.tree_attention import NAME, register
from pipeline.batch import make_rank_batches
from pipeline.config import AlgorithmConfig
from pipeline.credit import Objective, build_algorithm
from pipeline.types import Sample
from tests.support.credit_cases import group, trajectory

TEMPERATURE = 0.7


def batch() -> tuple[list[Sample], float]:
    """Groups whose trajectories share a prompt, and some of them rounds, of unequal lengths."""
    groups = []
    for g in range(3):
        won = trajectory(
            reward=1.0, verdicts=[(1, 1), (0, 1)], tokens=[9 + g, 7, 6], context=14, group_id=g
        )
        lost = trajectory(reward=0.0, verdicts=[(0, 0)], tokens=[8, 5 + 4 * g], context=14,
                          group_id=g, sample_id=1)  # fmt: skip
        prompt = won.rounds[0].context_ids
        lost = replace(lost, rounds=(replace(lost.rounds[0], context_ids=prompt), *lost.rounds[1:]))
        again = replace(lost, sample_id=2, rounds=(won.rounds[0], lost.rounds[1]))
        cut = replace(won, sample_id=3, reward=0.0, rounds=won.rounds[:2])
        groups.append(group(won, lost, again, cut))
    result = build_algorithm(AlgorithmConfig()).credit(groups)
    likely = [
        # an untrained policy gives every token about exp(-5.5)
        replace(s, sampler_logprobs=np.where(s.loss_mask, s.sampler_logprobs - 5, 0).astype("f4"))
        for s in result.samples
    ]
    return likely, result.normaliser


def shared(model: Any, samples: list[Sample], normaliser: float, tokens: int) -> float:
    """Our loss; gradients are left on the model."""
    scorer, total = PolicyScorer(model), 0.0
    for micro_batch in make_rank_batches(samples, normaliser, 1, tokens)[0].micro_batches:
        inputs = scorer_input(micro_batch, torch.device("cpu"))
        logprobs_P, entropy_P = scorer(inputs, TEMPERATURE)
        loss = micro_batch_loss(
            micro_batch, logprobs_P, entropy_P, Objective(), normaliser, LossMetrics()
        )
        loss.backward()
        total += float(loss.detach())
    return total


def padded(model: Any, samples: list[Sample], normaliser: float) -> float:
    """The loss by transformers alone on one right-padded batch; gradients on the model."""
    longest = max(len(s.token_ids) for s in samples)

    def rows(name: str) -> torch.Tensor:
        made = np.zeros((len(samples), longest), np.float32)
        for row, s in zip(made, samples, strict=True):
            row[: len(s.token_ids)] = getattr(s, name) if name else 1.0
        return torch.tensor(made)

    ids = rows("token_ids").long()
    logits = model(ids, attention_mask=rows("").long()).logits[:, :-1] / TEMPERATURE
    logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    ratio = torch.exp(logprobs - rows("sampler_logprobs")[:, 1:])
    advantages = rows("advantages")[:, 1:]
    token_loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    # a masked token has no weight, but its ratio may be infinite
    weighted = rows("loss_weights")[:, 1:] * torch.where(
        rows("loss_mask")[:, 1:] > 0, token_loss, 0
    )
    loss = weighted.sum() / normaliser
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize("tokens", [150, 10_000])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient_equal_those_of_a_padded_batch(
    tiny_policy: Path, tokens: int, checkpointing: bool
) -> None:
    register()
    samples, normaliser = batch()
    ours = load_policy(tiny_policy, dtype=torch.float32, attention=NAME).train()
    theirs = load_policy(tiny_policy, dtype=torch.float32, attention="sdpa").train()
    if checkpointing:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
    computed = make_rank_batches(samples, normaliser, 1, tokens)[0].micro_batches
    assert sum(m.num_nodes for m in computed) < sum(len(s.token_ids) for s in samples)
    loss, expected = shared(ours, samples, normaliser, tokens), padded(theirs, samples, normaliser)
    assert loss == pytest.approx(expected, rel=1e-6, abs=1e-6)
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    whole = torch.cat([g.ravel() for g in gradients.values()]).norm()
    assert whole > 0.1
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - gradients[name]).norm()
        assert difference < 1e-6 * whole, name
