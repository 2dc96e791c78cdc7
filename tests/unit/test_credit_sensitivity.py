"""What one opposite verdict would have done, against numbers by hand and training's own credit."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import AlgorithmConfig
from pipeline.credit import OppositeVerdict, build_algorithm
from pipeline.credit.contribution import round_weights
from pipeline.credit.sensitivity import flipped, opposite_verdicts, verdict_sensitivity
from pipeline.types import Verdict
from tests.support.credit_cases import group, trajectory

INF = math.inf
LIMIT = partial(round_weights, success=True, alpha=INF)

# eighths: 1 - p is exact, so that turning round twice gives the same number back
eighths = st.integers(0, 8).map(lambda n: n / 8)
known = st.lists(st.one_of(st.sampled_from([0.0, 1.0]), eighths), min_size=1, max_size=8)
some_unknown = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, math.nan]), eighths), min_size=1, max_size=8
)
alphas = st.one_of(st.sampled_from([0.0, 1.0, 5.0, INF]), st.floats(0.0, 50.0))
rules = st.fixed_dictionaries(
    {
        "success": st.booleans(),
        "failures": st.sampled_from(["uniform", "same", "blame"]),
        "alpha": alphas,
        "no_contribution": st.sampled_from(["uniform", "zero"]),
        "failed_verdict": st.sampled_from(["uniform", "zero"]),
    }
)


def weights(p: list[float], **chosen: object) -> np.ndarray:
    return round_weights(np.array(p), **chosen)  # type: ignore[arg-type]


def test_the_only_contribution_of_three_carried_all_credit() -> None:
    # w = 3 0 0. Without the first: none contributed, 1 1 1. With the second: 1.5 1.5 0
    first, second, third = opposite_verdicts(np.array([1.0, 0.0, 0.0]), LIMIT)
    assert first == OppositeVerdict(
        contribution=1.0, weight=3.0, opposite_weight=1.0, others_change=1.0
    )
    assert second == OppositeVerdict(
        contribution=0.0, weight=0.0, opposite_weight=1.5, others_change=-1.5
    )
    assert third == second
    assert first.change == -2.0


def test_a_fractional_contribution_is_mirrored_at_one_half() -> None:
    # w of 0.75 0.25 is 1.5 0.5; of 0.25 0.25 it is 1 1; of 0.75 0.75 too
    first, second = opposite_verdicts(np.array([0.75, 0.25]), LIMIT)
    assert (first.opposite_weight, first.others_change) == (1.0, 0.5)
    assert (second.opposite_weight, second.others_change) == (1.0, -0.5)


def test_the_softmax_is_turned_round_by_its_own_temperature() -> None:
    # exp(ln 3 p) of 1 0 is 3 1, mean 2: w = 1.5 0.5; with both 1 1
    weigh = partial(round_weights, success=True, alpha=math.log(3))
    first, second = opposite_verdicts(np.array([1.0, 0.0]), weigh)
    assert (first.weight, first.opposite_weight) == (pytest.approx(1.5), pytest.approx(1.0))
    assert (second.weight, second.opposite_weight) == (pytest.approx(0.5), pytest.approx(1.0))


def test_blame_turns_the_same_verdict_the_other_way() -> None:
    # 1 - p of 1 0 is 0 1: w = 0 2; without the first contribution 1 1, with the second 0 0 -> 1 1
    weigh = partial(round_weights, success=False, failures="blame", alpha=INF)
    first, second = opposite_verdicts(np.array([1.0, 0.0]), weigh)
    assert (first.weight, first.opposite_weight, first.others_change) == (0.0, 1.0, -1.0)
    assert (second.weight, second.opposite_weight, second.others_change) == (2.0, 1.0, 1.0)


def test_the_published_rule_loses_all_credit_with_the_only_contribution() -> None:
    weigh = partial(LIMIT, no_contribution="zero")
    first, _ = opposite_verdicts(np.array([1.0, 0.0]), weigh)
    assert (first.weight, first.opposite_weight, first.others_change) == (2.0, 0.0, 0.0)
    (only,) = opposite_verdicts(np.array([1.0]), weigh)
    assert (only.weight, only.opposite_weight) == (1.0, 0.0)


def test_a_round_without_a_verdict_has_no_opposite_and_holds_the_others_fast() -> None:
    known_, unknown = opposite_verdicts(np.array([1.0, math.nan]), LIMIT)
    assert unknown is None
    assert (known_.weight, known_.opposite_weight) == (1.0, 1.0)


def test_a_round_without_a_verdict_counts_as_nothing_under_the_other_rule() -> None:
    weigh = partial(LIMIT, failed_verdict="zero")
    known_, unknown = opposite_verdicts(np.array([1.0, math.nan]), weigh)
    assert unknown is None
    assert (known_.weight, known_.opposite_weight) == (2.0, 1.0)


def test_no_search_round_has_no_verdict() -> None:
    assert opposite_verdicts(np.zeros(0), LIMIT) == ()


@given(p=some_unknown, rules=rules, data=st.data())
def test_turning_a_verdict_round_twice_gives_back_the_weights(p, rules, data) -> None:
    t = data.draw(st.integers(0, len(p) - 1))
    weigh = partial(round_weights, **rules)
    once = flipped(np.array(p), t)
    np.testing.assert_array_equal(weigh(flipped(once, t)), weigh(np.array(p)))
    there, back = opposite_verdicts(np.array(p), weigh)[t], opposite_verdicts(once, weigh)[t]
    if there is None:
        assert back is None
    else:
        assert (back.weight, back.opposite_weight) == (there.opposite_weight, there.weight)
        assert abs(back.others_change) == abs(there.others_change)


@given(p=known, rules=rules, data=st.data())
def test_the_mean_weight_is_one_before_and_after(p, rules, data) -> None:
    t = data.draw(st.integers(0, len(p) - 1))
    weigh = partial(round_weights, **{**rules, "no_contribution": "uniform"})
    before, after = weigh(np.array(p)), weigh(flipped(np.array(p), t))
    assert math.isclose(before.mean(), 1.0, rel_tol=1e-12)
    assert math.isclose(after.mean(), 1.0, rel_tol=1e-12)


@given(p=known, rules=rules)
def test_what_a_round_loses_the_others_gain(p, rules) -> None:
    weigh = partial(round_weights, **{**rules, "no_contribution": "uniform"})
    for verdict in opposite_verdicts(np.array(p), weigh):
        others = len(p) - 1
        assert verdict.change * verdict.others_change <= 0
        # the largest change of the others is between their mean and their sum
        lost, gained = abs(verdict.change), abs(verdict.others_change)
        assert gained <= lost + 1e-9
        assert lost <= others * gained + 1e-9


def _unmoved(p: list[float], **chosen: object) -> None:
    for verdict in opposite_verdicts(np.array(p), partial(round_weights, **chosen)):  # type: ignore[arg-type]
        if verdict is not None:
            assert (verdict.change, verdict.others_change) == (0.0, 0.0)


@given(p=some_unknown, rules=rules)
def test_with_alpha_zero_no_verdict_moves_anything(p, rules) -> None:
    _unmoved(p, **{**rules, "alpha": 0.0})


@given(p=some_unknown, rules=rules)
def test_no_verdict_moves_the_credit_of_a_failure_under_uniform(p, rules) -> None:
    _unmoved(p, **{**rules, "success": False, "failures": "uniform"})


@given(p=st.one_of(st.sampled_from([0.0, 1.0, math.nan]), eighths), rules=rules)
def test_no_verdict_moves_a_single_search_round(p, rules) -> None:
    _unmoved([p], **{**rules, "no_contribution": "uniform"})


signals = st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]))
ALGORITHMS = [
    AlgorithmConfig(alpha=INF),
    AlgorithmConfig(alpha=2.0),
    AlgorithmConfig(alpha=INF, no_contribution="zero", failed_verdict="zero"),
    AlgorithmConfig(alpha=INF, signal="utility"),
    AlgorithmConfig(alpha=INF, signal="correctness"),
    AlgorithmConfig(alpha=INF, failures="blame"),
    AlgorithmConfig(alpha=5.0, failures="same", failed_verdict="zero"),
    AlgorithmConfig(alpha=0.0),
    AlgorithmConfig(credit="process"),
]


@given(
    config=st.sampled_from(ALGORITHMS),
    won=st.booleans(),
    verdicts=st.lists(st.one_of(signals, st.none()), min_size=1, max_size=5),
    data=st.data(),
)
def test_training_gives_the_weights_foretold_when_the_judge_does_say_the_opposite(
    config, won, verdicts, data
) -> None:
    algorithm = build_algorithm(config)
    played = trajectory(reward=float(won), verdicts=verdicts)
    other = trajectory(reward=float(not won), verdicts=[(1, 1)], sample_id=1)
    credit = algorithm.credit([group(played, other)]).trajectories[0]
    t = data.draw(st.integers(0, len(verdicts) - 1))
    foretold = algorithm.opposite_verdicts(credit)[t]
    if verdicts[t] is None:
        assert foretold is None
        return
    p = credit.contributions[t]
    said = [r.verdict for r in played.search_rounds]
    said[t] = Verdict(utility=1.0 - p, correctness=1.0 - p)
    trained = algorithm.credit([group(played.with_verdicts(said), other)]).trajectories[0]
    assert foretold.weight == credit.weights[t]
    assert foretold.opposite_weight == trained.weights[t]
    others = np.delete(trained.weights - credit.weights, t)
    assert abs(foretold.others_change) == np.abs(others).max(initial=0.0)
    assert trained.advantage == credit.advantage  # no verdict moves it


def test_a_trajectorys_weights_come_from_verdicts_by_the_rule_for_failures() -> None:
    def weighs(**chosen: object) -> list[bool]:
        algorithm = build_algorithm(replace(AlgorithmConfig(), **chosen))
        pair = group(
            trajectory(reward=1.0, verdicts=[(1, 1)]),
            trajectory(reward=0.0, verdicts=[(1, 1)], sample_id=1),
        )
        return [algorithm.weighs(c) for c in algorithm.credit([pair]).trajectories]

    assert weighs() == [True, False]
    assert weighs(failures="same") == [True, True]
    assert weighs(alpha=0.0) == [False, False]
    assert weighs(credit="uniform") == [False, False]
    assert weighs(credit="process") == [False, False]


def test_sensitivity_is_over_verdicts_and_in_shares_of_what_there_is_to_share() -> None:
    # 1 0 0: changes -2, 1.5, 1.5 of three rounds; 1 alone: 0; 1 ?: 0 under failed_verdict=uniform
    cases = ([1.0, 0.0, 0.0], [1.0], [1.0, math.nan], [math.nan])
    found = verdict_sensitivity([opposite_verdicts(np.array(p), LIMIT) for p in cases])
    assert found is not None
    assert (found.trajectories, found.one_search_round, found.verdicts) == (3, 1, 5)
    assert (found.weight_change_mean, found.weight_change_max) == (1.0, 2.0)
    assert found.credit_share_mean == pytest.approx((2 + 1.5 + 1.5) / 3 / 5)
    assert found.credit_share_max == pytest.approx(2 / 3)


def test_without_a_verdict_there_is_no_sensitivity_and_not_zero() -> None:
    assert verdict_sensitivity([]) is None
    assert verdict_sensitivity([(), (None,)]) is None
