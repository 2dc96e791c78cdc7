"""Ranks, samples and the plain computation they must agree with, for tests of the learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.batch import make_rank_batches, to_samples
from pipeline.config import AlgorithmConfig, LearnerConfig
from pipeline.credit import CreditResult, Objective, build_algorithm
from pipeline.types import Sample
from tests.support.credit_cases import group, trajectory

__all__ = ["SGD", "credit", "make_rank", "on_policy", "plain_loss", "step", "weights_of"]

SGD = LearnerConfig(optimizer="sgd", lr=1.0, max_grad_norm=0.0)  # weight change = -gradient


def credit(num_groups: int = 3) -> CreditResult:
    """Groups of unequal lengths with weighted successes; sampler log-probabilities are made up."""
    groups = []
    for g in range(num_groups):
        won = trajectory(
            reward=1.0, verdicts=[(1, 1), (0, 1)], tokens=[5 + g, 3, 4], context=6, group_id=g
        )
        lost = trajectory(
            reward=0.0, verdicts=[(0, 0)], tokens=[4, 2 + 3 * g], group_id=g, sample_id=1
        )
        # shares its first round with the success, as siblings do
        again = replace(lost, sample_id=2, rounds=(won.rounds[0], lost.rounds[1]))
        groups.append(group(won, lost, again))
    return build_algorithm(AlgorithmConfig()).credit(groups)


def make_rank(policy: Path, config: LearnerConfig, **options: Any) -> Any:
    """A started LearnerRank of world size 1."""
    from actors.learner_rank import LearnerJob, LearnerRank

    options = {"objective": Objective(), "temperature": 0.7, "total_steps": 10} | options
    rank = LearnerRank(LearnerJob(config, model_path=str(policy), **options))
    rank.start()
    return rank


def on_policy(rank: Any, samples: Sequence[Sample]) -> list[Sample]:
    """The samples as if this rank's policy had sampled them."""
    batch = make_rank_batches(samples, 1.0, 1, 4096)[0]
    logprobs = to_samples(samples, rank.logprobs(batch, "current"))
    return [replace(s, sampler_logprobs=p) for s, p in zip(samples, logprobs, strict=True)]


def step(
    rank: Any, samples: Sequence[Sample], normaliser: float, tokens: int = 4096
) -> dict[str, float]:
    """One train step of a single rank in micro-batches of ``tokens``."""
    return rank.train_step(make_rank_batches(samples, normaliser, 1, tokens)[0])


def weights_of(rank: Any) -> np.ndarray:
    """All weights end to end, float64."""
    tensors, _ = rank.weights()
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def plain_loss(model: Any, samples: Sequence[Sample], normaliser: float, temperature: float) -> Any:
    """The loss by transformers alone, one whole trajectory at a time, full logits."""
    import torch

    total = torch.zeros(())
    for s in samples:
        tokens = torch.as_tensor(s.token_ids, dtype=torch.long)
        logits = model(tokens[None]).logits[0, :-1].float() / temperature
        logprobs = torch.log_softmax(logits, -1).gather(1, tokens[1:, None])[:, 0]
        mask = torch.as_tensor(s.loss_mask[1:])
        ratio = torch.exp(logprobs - torch.as_tensor(s.sampler_logprobs[1:]))
        advantages = torch.as_tensor(s.advantages[1:])
        token_loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        total = total + (torch.as_tensor(s.loss_weights[1:]) * token_loss)[mask].sum()
    return total / normaliser
