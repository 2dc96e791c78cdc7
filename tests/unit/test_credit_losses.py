"""Token losses by hand, and their gradients by finite differences."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from pipeline.credit.losses import SurrogateLoss, policy_loss
from pipeline.credit.objective import PolicyLoss

RATIOS = [0.5, 0.85, 1.0, 1.1, 1.6]


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def surrogate(  # type: ignore[no-untyped-def]
    logprobs, old, advantages, low=0.2, high=0.2, loss="ppo_clip", sequences=None
) -> SurrogateLoss:
    sequences = list(range(len(advantages))) if sequences is None else sequences
    return policy_loss(
        loss,
        tensor(logprobs),
        tensor(old),
        tensor(advantages),
        torch.tensor(sequences),
        clip_low=low,
        clip_high=high,
    )


def test_on_policy_the_loss_is_minus_the_advantage() -> None:
    loss = surrogate([-1.0, -2.0], [-1.0, -2.0], [0.7, -0.3])
    assert loss.token_loss_P.tolist() == [-0.7, 0.3]
    assert loss.ratio_P.tolist() == [1.0, 1.0]
    assert not loss.clipped_P.any()


def test_the_four_ways_of_leaving_the_clip_range() -> None:
    # ratios 1.5 and 0.5 with advantages of both signs
    up, down = math.log(1.5), math.log(0.5)
    loss = surrogate([up, up, down, down], [0.0] * 4, [1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(loss.token_loss_P, tensor([-1.2, 1.5, -0.5, 0.8]))
    assert loss.clipped_P.tolist() == [True, False, False, True]


def test_the_clip_range_may_be_asymmetric() -> None:
    up, down = math.log(1.5), math.log(0.5)
    loss = surrogate([up, down], [0.0, 0.0], [1.0, -1.0], low=0.4, high=0.3)
    torch.testing.assert_close(loss.token_loss_P, tensor([-1.3, 0.6]))


def test_a_clipped_token_has_no_gradient_and_an_unclipped_one_that_of_its_ratio() -> None:
    logprobs = tensor([math.log(1.5), math.log(1.1)]).requires_grad_()
    surrogate(logprobs, [0.0, 0.0], [2.0, 2.0]).token_loss_P.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, tensor([0.0, -2.2]))


def test_gspo_has_one_ratio_a_trajectory_the_geometric_mean_of_its_tokens() -> None:
    # log ratios 0.2 and 0.4 in one trajectory, 0.1 in the other
    loss = surrogate(
        [0.2, 0.4, 0.1], [0.0] * 3, [1.0, 1.0, -1.0], 0.5, 0.5, "gspo", sequences=[4, 4, 9]
    )
    s, other = math.exp(0.3), math.exp(0.1)
    torch.testing.assert_close(loss.ratio_P, tensor([s, s, other]))
    torch.testing.assert_close(loss.token_loss_P, tensor([-s, -s, other]))


def test_gspo_clips_a_trajectory_as_a_whole() -> None:
    # token ratios 1.5 and 1.0: neither the mean log ratio's 1.22 nor either token decides alone
    loss = surrogate(
        [math.log(1.5), 0.0], [0.0, 0.0], [1.0, 1.0], 0.1, 0.1, "gspo", sequences=[0, 0]
    )
    assert loss.clipped_P.tolist() == [True, True]
    torch.testing.assert_close(loss.token_loss_P, tensor([-1.1, -1.1]))


def test_cispo_bounds_the_weight_and_keeps_the_gradient_of_every_token() -> None:
    # ratios 1.5 (bounded to 1.2) and 0.5 (no lower bound)
    logprobs = tensor([math.log(1.5), math.log(0.5)]).requires_grad_()
    loss = surrogate(logprobs, [0.0, 0.0], [2.0, 2.0], 1.0, 0.2, "cispo")
    loss.token_loss_P.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, tensor([-2.4, -1.0]))
    assert loss.clipped_P.tolist() == [True, False]


def test_nll_is_minus_the_weighted_log_probability() -> None:
    loss = surrogate([-1.0, -2.0], [0.0, 0.0], [1.0, 0.5], loss="nll")
    assert loss.token_loss_P.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("advantage", [0.8, -0.8])
@pytest.mark.parametrize("name", get_args(PolicyLoss))
def test_the_gradient_of_every_loss_equals_finite_differences(name: str, advantage: float) -> None:
    # gspo's and cispo's stopped parts are held at the point where the gradient is taken
    old = torch.full((len(RATIOS),), -0.4, dtype=torch.float64)
    advantages = torch.full_like(old, advantage)
    sequences = torch.tensor([0, 0, 1, 1, 1])
    point = old + tensor(RATIOS).log()
    mean = torch.cat(
        [part.mean().expand(len(part)) for part in ((point - old)[:2], (point - old)[2:])]
    )

    def loss(x: torch.Tensor) -> torch.Tensor:
        return surrogate(x, old, advantages, loss=name, sequences=sequences.tolist()).token_loss_P

    def held(x: torch.Tensor) -> torch.Tensor:
        if name == "gspo":
            ratio = torch.exp(mean + x - point)
            return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        if name == "cispo":
            return -tensor(RATIOS).clamp(0.8, 1.2) * advantages * x
        return loss(x)

    x = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    h = 1e-6
    for i in range(len(point)):
        step = torch.zeros_like(point)
        step[i] = h
        slope = (held(point + step).sum() - held(point - step).sum()) / (2 * h)
        torch.testing.assert_close(gradient[i], slope, atol=1e-7, rtol=1e-6)
