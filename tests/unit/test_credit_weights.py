"""Contribution weights and group advantages against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.credit.advantage import group_advantages
from pipeline.credit.contribution import contribution_weights

INF = math.inf


def test_an_advantage_is_the_distance_from_the_mean_in_sample_standard_deviations() -> None:
    # mean 1/4, deviations 3/4 and -1/4; sample variance (9/16 + 3/16) / 3 = 1/4
    advantages = group_advantages(np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(advantages, [1.5, -0.5, -0.5, -0.5], rtol=1e-5)
    assert advantages[0] == 0.75 / (0.5 + 1e-6)


def test_without_the_division_an_advantage_is_the_distance_from_the_mean() -> None:
    advantages = group_advantages(np.array([1.0, 0.0, 0.0, 0.0]), scale="none")
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_equal_rewards_give_exactly_no_advantage(reward: float) -> None:
    assert group_advantages(np.full(7, reward)).tolist() == [0.0] * 7


def test_a_single_survivor_has_nothing_to_be_compared_with() -> None:
    assert group_advantages(np.array([1.0])).tolist() == [0.0]


def test_the_limit_shares_credit_among_the_rounds_that_contributed() -> None:
    assert contribution_weights(np.array([1.0, 0.0, 1.0]), alpha=INF).tolist() == [1.5, 0.0, 1.5]


def test_the_limit_of_fractional_contributions_is_proportional() -> None:
    # p / sum p * S with sum 1 and S 3
    weights = contribution_weights(np.array([0.5, 0.25, 0.25]), alpha=INF)
    np.testing.assert_allclose(weights, [1.5, 0.75, 0.75], rtol=1e-15)


def test_a_finite_alpha_is_a_softmax_scaled_to_mean_one() -> None:
    # exp(ln 3 * p) = 3, 1, 1: c = 3/5, 1/5, 1/5, times S = 3
    weights = contribution_weights(np.array([1.0, 0.0, 0.0]), alpha=math.log(3))
    np.testing.assert_allclose(weights, [1.8, 0.6, 0.6], rtol=1e-14)


def test_a_huge_alpha_neither_overflows_nor_differs_from_the_limit() -> None:
    p = np.array([1.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(
        contribution_weights(p, alpha=1e6), contribution_weights(p, alpha=INF)
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 5.0, 1e9, INF])
def test_no_contributing_round_is_uniform_by_default(alpha: float) -> None:
    assert contribution_weights(np.zeros(3), alpha=alpha).tolist() == [1.0, 1.0, 1.0]


def test_no_contributing_round_gets_nothing_under_the_published_rule() -> None:
    weights = contribution_weights(np.zeros(3), alpha=INF, no_contribution="zero")
    assert weights.tolist() == [0.0, 0.0, 0.0]


def test_the_published_rule_is_of_the_limit_only() -> None:
    weights = contribution_weights(np.zeros(2), alpha=5.0, no_contribution="zero")
    assert weights.tolist() == [1.0, 1.0]


def test_a_failed_verdict_keeps_uniform_weights() -> None:
    assert contribution_weights(np.array([1.0, math.nan]), alpha=INF).tolist() == [1.0, 1.0]


def test_a_failed_verdict_counts_as_no_contribution_where_the_user_says_so() -> None:
    weights = contribution_weights(np.array([1.0, math.nan]), alpha=INF, failed_verdict="zero")
    assert weights.tolist() == [2.0, 0.0]


def test_no_search_round_has_no_weight() -> None:
    assert contribution_weights(np.zeros(0), alpha=INF).tolist() == []


def test_one_search_round_keeps_its_whole_advantage() -> None:
    for p in (0.0, 0.3, 1.0):
        for alpha in (0.0, 2.0, INF):
            assert contribution_weights(np.array([p]), alpha=alpha).tolist() == [1.0]


contributions = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0)), min_size=1, max_size=12
)
alphas = st.one_of(st.sampled_from([0.0, 1.0, 5.0, INF]), st.floats(0.0, 1e4))


@given(p=contributions, alpha=alphas)
def test_weights_conserve_the_mean_over_search_rounds(p: list[float], alpha: float) -> None:
    weights = contribution_weights(np.array(p), alpha=alpha)
    assert math.isclose(weights.mean(), 1.0, rel_tol=1e-12)
    assert (weights >= 0).all()


@given(p=contributions, alpha=alphas)
def test_a_round_that_contributed_more_never_weighs_less(p: list[float], alpha: float) -> None:
    weights = contribution_weights(np.array(p), alpha=alpha)
    order = np.argsort(p)
    assert (np.diff(weights[order]) >= 0).all()


@given(p=contributions)
def test_alpha_zero_is_exactly_one(p: list[float]) -> None:
    assert contribution_weights(np.array(p), alpha=0.0).tolist() == [1.0] * len(p)
