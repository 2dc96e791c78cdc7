"""Intervals against published numbers, and the cases where a careless one would mislead."""

import math

import numpy as np
import pytest

from pipeline.statistics import (
    mean_by_question,
    paired_difference,
    paired_ratio_change,
    pass_at_k,
    pass_at_k_by_question,
    ratio_by_question,
    wilson,
)


def test_wilson_agrees_with_the_formula_worked_by_hand():
    # centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    z, n, p = 1.959963984540054, 20, 0.25
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    estimate = wilson(5, 20)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half))


def test_wilson_of_no_success_still_has_a_width():
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_one_sample_a_question_gets_wilsons_interval():
    assert mean_by_question([[1.0], [0.0], [1.0], [1.0]], share=True) == wilson(3, 4)


def test_samples_of_one_question_are_one_cluster():
    # 20 questions, either always right or always wrong: 8 samples tell no more than one
    always = [[float(q % 2)] * 8 for q in range(20)]
    estimate = mean_by_question(always, share=True)
    assert (estimate.value, estimate.n) == (0.5, 20)
    naive = wilson(80, 160)
    assert estimate.high - estimate.low > 2 * (naive.high - naive.low)


def test_where_all_questions_agree_a_share_is_not_certain():
    assert mean_by_question([[1.0, 1.0]] * 10, share=True) == wilson(10, 10)


def test_a_ratio_weighs_by_rounds_and_leaves_out_questions_without_any():
    estimate = ratio_by_question([0.0, 2.0, 0.0], [1.0, 3.0, 0.0])
    assert (estimate.value, estimate.n) == (0.5, 2)


def test_a_bootstrap_interval_is_close_to_the_normal_one_and_repeats_exactly():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    estimate = mean_by_question([[float(v)] for v in values])
    half = 1.96 * values.std() / math.sqrt(400)
    assert (estimate.low, estimate.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.015
    )
    assert estimate == mean_by_question([[float(v)] for v in values])


def test_the_bootstrap_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(100):
        skill = random.beta(2, 3, 80)  # of 80 questions; the mean skill is 0.4
        answers = [(random.random(4) < s).astype(float).tolist() for s in skill]
        estimate = mean_by_question(answers, share=True)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 88 <= covered <= 100


def test_a_paired_difference_uses_the_shared_questions_and_drops_what_they_share():
    skill = np.random.default_rng(0).random(200)
    before = {f"q{i}": float(s) for i, s in enumerate(skill)}
    after = {f"q{i}": float(s) + 0.1 for i, s in enumerate(skill)} | {"new": 1.0}
    estimate = paired_difference(before, after)
    assert estimate.n == 200
    # every question rose by 0.1: paired, there is no uncertainty left
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_paired_difference_needs_a_shared_question():
    with pytest.raises(ValueError, match="no question"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_pass_at_k_by_hand():
    assert pass_at_k(n=5, correct=2, k=1) == pytest.approx(2 / 5)
    assert pass_at_k(n=5, correct=2, k=3) == pytest.approx(1 - 1 / 10)  # C(3,3) / C(5,3)
    assert pass_at_k(n=5, correct=3, k=3) == 1.0
    assert pass_at_k(n=8, correct=0, k=8) == 0.0


def test_pass_at_k_is_the_mean_over_all_subsets_of_k_samples():
    from itertools import combinations

    samples = [True, False, False, True, False, False]
    for k in range(1, 7):
        subsets = list(combinations(samples, k))
        expected = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k(n=6, correct=2, k=k) == pytest.approx(expected)


def test_pass_at_k_refuses_fewer_samples_than_k():
    with pytest.raises(ValueError, match="pass@8"):
        pass_at_k(n=4, correct=1, k=8)


def test_pass_at_k_leaves_out_questions_that_lost_samples():
    estimate = pass_at_k_by_question([[True, False], [False, False], [True]], k=2)
    assert estimate == wilson(1, 2)


def test_no_data_is_nan_and_null_in_json():
    estimate = mean_by_question([])
    assert estimate.n == 0
    assert estimate.as_dict() == {"value": None, "low": None, "high": None, "n": 0}


def test_the_change_of_a_ratio_is_that_of_the_two_ratios_and_pairs_questions():
    before = {f"q{i}": (float(i % 4), 4.0) for i in range(200)}  # 300 of 800
    after = {q: (a / 2, b) for q, (a, b) in before.items()} | {"new": (9.0, 9.0)}
    estimate = paired_ratio_change(before, after)
    assert (estimate.value, estimate.n) == (-0.1875, 200)
    assert estimate.low < -0.1875 < estimate.high < -0.15
    assert paired_ratio_change(before, before).high == 0.0
    with pytest.raises(ValueError, match="no question"):
        paired_ratio_change(before, {})
    with pytest.raises(ValueError, match="nothing"):
        paired_ratio_change(before, {q: (0.0, 0.0) for q in before})
