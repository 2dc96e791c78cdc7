"""Token losses by hand, and their gradients by finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.credit.losses import clipped_surrogate, k3_kl


def surrogate(logprobs, old, advantages, low=0.2, high=0.2):  # type: ignore[no-untyped-def]
    def tensor(values):  # type: ignore[no-untyped-def]
        return torch.as_tensor(values, dtype=torch.float64)

    return clipped_surrogate(
        tensor(logprobs), tensor(old), tensor(advantages), clip_low=low, clip_high=high
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
    torch.testing.assert_close(
        loss.token_loss_P, torch.tensor([-1.2, 1.5, -0.5, 0.8], dtype=torch.float64)
    )
    assert loss.clipped_P.tolist() == [True, False, False, True]


def test_the_clip_range_may_be_asymmetric() -> None:
    up, down = math.log(1.5), math.log(0.5)
    loss = surrogate([up, down], [0.0, 0.0], [1.0, -1.0], low=0.4, high=0.3)
    torch.testing.assert_close(loss.token_loss_P, torch.tensor([-1.3, 0.6], dtype=torch.float64))


def test_a_clipped_token_has_no_gradient_and_an_unclipped_one_that_of_its_ratio() -> None:
    logprobs = torch.tensor([math.log(1.5), math.log(1.1)], dtype=torch.float64, requires_grad=True)
    loss = clipped_surrogate(
        logprobs,
        torch.zeros(2, dtype=torch.float64),
        torch.full((2,), 2.0, dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.2,
    )
    loss.token_loss_P.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -2.2], dtype=torch.float64))


@pytest.mark.parametrize("advantage", [0.8, -0.8])
@pytest.mark.parametrize("ratio", [0.5, 0.85, 1.0, 1.1, 1.6])
def test_the_surrogates_gradient_equals_finite_differences(ratio: float, advantage: float) -> None:
    old = torch.tensor([-0.4], dtype=torch.float64)
    advantages = torch.tensor([advantage], dtype=torch.float64)

    def loss(logprobs: torch.Tensor) -> torch.Tensor:
        return clipped_surrogate(
            logprobs, old, advantages, clip_low=0.2, clip_high=0.2
        ).token_loss_P

    point = (old + math.log(ratio)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (point,), eps=1e-6, atol=1e-7)


def test_k3_is_zero_where_policies_agree_and_known_where_not() -> None:
    # ref twice as likely: 2 - ln 2 - 1
    value = k3_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.log(2.0)]))
    torch.testing.assert_close(value, torch.tensor([0.0, 1.0 - math.log(2.0)]))


def test_k3_averages_to_the_kl_divergence_under_the_policy() -> None:
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    expected = (policy * (policy / reference).log()).sum()
    estimate = (policy * k3_kl(policy.log(), reference.log())).sum()
    torch.testing.assert_close(estimate, expected)


def test_the_gradient_of_k3_equals_finite_differences() -> None:
    reference = torch.tensor([-0.3, -2.0], dtype=torch.float64)
    point = torch.tensor([-0.9, -1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: k3_kl(x, reference), (point,), eps=1e-6, atol=1e-7)
