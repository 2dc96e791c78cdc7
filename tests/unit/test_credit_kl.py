"""KL estimators by hand, in expectation, and their gradients."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from pipeline.credit.kl import KlEstimator, kl_divergence, trajectory_kl

ESTIMATORS = get_args(KlEstimator)
POLICY = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    # ref twice as likely: d = ln 2
    [
        ("k1", -math.log(2.0)),
        ("k2", math.log(2.0) ** 2 / 2),
        ("k3", 1.0 - math.log(2.0)),
    ],
)
def test_an_estimate_is_zero_where_policies_agree_and_known_where_not(
    estimator: KlEstimator, expected: float
) -> None:
    own, reference = np.zeros(2), np.array([0.0, math.log(2.0)])
    for made in (
        kl_divergence(own, reference, estimator),
        kl_divergence(torch.tensor(own), torch.tensor(reference), estimator).numpy(),
    ):
        np.testing.assert_allclose(made, [0.0, expected], atol=1e-15)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_average_to_the_divergence_under_the_policy(estimator: KlEstimator) -> None:
    expected = (POLICY * (POLICY / REFERENCE).log()).sum()
    estimate = (POLICY * kl_divergence(POLICY.log(), REFERENCE.log(), estimator)).sum()
    torch.testing.assert_close(estimate, expected)


def test_the_expected_gradient_of_k2_is_the_divergences_and_that_of_k1_is_zero() -> None:
    logits = POLICY.log().requires_grad_()

    def gradient(estimator: KlEstimator) -> torch.Tensor:
        logprobs = torch.log_softmax(logits, -1)
        expected = (POLICY * kl_divergence(logprobs, REFERENCE.log(), estimator)).sum()
        return torch.autograd.grad(expected, logits)[0]

    logprobs = torch.log_softmax(logits, -1)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - REFERENCE.log())).sum(), logits)[0]
    torch.testing.assert_close(gradient("k2"), exact)
    torch.testing.assert_close(gradient("k1"), torch.zeros_like(exact), atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_equals_finite_differences(estimator: KlEstimator) -> None:
    reference = torch.tensor([-0.3, -2.0], dtype=torch.float64)
    point = torch.tensor([-0.9, -1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: kl_divergence(x, reference, estimator), (point,), eps=1e-6, atol=1e-7
    )


def test_a_trajectorys_divergence_is_the_sum_over_its_own_tokens() -> None:
    sampler = np.array([0.0, -1.0, -2.0], np.float32)
    reference = np.array([-9.0, -1.5, -1.0], np.float32)
    mask = np.array([False, True, True])
    assert trajectory_kl(sampler, reference, mask, "k1") == pytest.approx(0.5 - 1.0)
