"""What judging cost, for a round and for a thousand trajectories."""

import pytest

from pipeline.judging.costs import asked_a_model, judge_costs

ASKED = {
    "rounds": 50.0,
    "failures": 10.0,
    "busy_s": 8.0,
    "wait_s": 4.0,
    "calls": 60.0,
    "prompt_tokens": 4000.0,
    "completion_tokens": 400.0,
    "money": 2.0,
    "call_s": 20.0,
    "bad_answers": 20.0,
}


def test_costs_are_shared_out_over_the_rounds_that_got_a_verdict():
    a_round = judge_costs(ASKED, trajectories=200)["per_round"]
    assert a_round["calls"] == 60 / 40
    assert a_round["prompt_tokens"] == 100
    assert a_round["money"] == pytest.approx(0.05)
    assert a_round["busy_s"] == pytest.approx(0.2)
    assert a_round["wait_s"] == pytest.approx(0.1)


def test_costs_of_a_thousand_are_over_all_trajectories_played():
    a_thousand = judge_costs(ASKED, trajectories=200)["per_1000_trajectories"]
    assert (a_thousand["calls"], a_thousand["money"]) == (300.0, 10.0)
    assert a_thousand["call_s"] == pytest.approx(100.0)


def test_totals_are_all_there_also_those_that_were_never_added_to():
    costs = judge_costs({**ASKED, "canary_rounds": 7.0}, trajectories=200)
    assert {name: costs[name] for name in ASKED} == ASKED
    assert (costs["cache_hits"], costs["over_budget"], costs["canary_rounds"]) == (0.0, 0.0, 7.0)
    assert costs["trajectories"] == 200


def test_tokens_without_prices_cost_an_unknown_sum_and_not_nothing():
    costs = judge_costs({**ASKED, "money": 0.0}, trajectories=200)
    assert costs["money"] is None
    assert costs["per_round"]["money"] is None
    assert costs["per_1000_trajectories"]["money"] is None
    assert costs["per_round"]["calls"] == 1.5


def test_nothing_judged_or_played_has_no_cost_of_one():
    costs = judge_costs({"rounds": 3.0, "failures": 3.0, "failed_calls": 3.0}, trajectories=0)
    assert costs["per_round"] is None
    assert costs["per_1000_trajectories"] is None


def test_a_rule_asked_no_model_but_one_that_only_failed_or_remembered_was_asked():
    def asked(**totals: float) -> bool:
        return asked_a_model(judge_costs({"rounds": 5.0, "busy_s": 0.1, **totals}, 10))

    assert not asked()
    assert asked(calls=1.0)
    assert asked(cache_hits=5.0)
    assert asked(failed_calls=5.0)
    assert asked(over_budget=5.0)
