"""Agreement, calibration, consistency, biases and cost: by hand, and against scikit-learn."""

import json
import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    precision_score,
    recall_score,
)

from pipeline.commands.audit_output import audit_tables, number_text, share_text
from pipeline.judging.agreement import agreement_summary, counts
from pipeline.judging.audit import audit_summary, cost_summary
from pipeline.judging.bias import by_kind, by_length, by_round
from pipeline.judging.calibration import calibration_summary
from pipeline.judging.consistency import consistency_summary
from pipeline.judging.judged import judged_rounds, votes
from pipeline.judging.resample import QuestionBootstrap
from tests.support.judged import rounds_of, trace, verdict

YES, NO = (1.0, 1.0), (0.0, 0.0)


def bootstrap_of(rounds, resamples=200):
    return QuestionBootstrap((r.question for r in rounds), resamples)


def agreement(rounds):
    return agreement_summary(rounds, bootstrap_of(rounds))


@pytest.fixture(scope="module")
def noisy():
    """60 questions of one to six rounds, judged three times with errors that differ by question."""
    rng = np.random.default_rng(3)
    played = []
    for q in range(60):
        labels = [tuple(map(float, rng.integers(0, 2, 2))) for _ in range(rng.integers(1, 7))]
        error = rng.uniform(0.0, 0.5)
        repeats = [
            [tuple(abs(x - float(rng.random() < error)) for x in label) for label in labels]
            for _ in range(3)
        ]
        played.append((f"q{q}", labels, repeats))
    return rounds_of(*played)


def test_agreement_and_kappa_are_those_worked_out_by_hand():
    # label x verdict of u: 20 / 10 / 5 / 15, for which kappa is 0.4
    cells = [(0.0, 0.0)] * 20 + [(0.0, 1.0)] * 10 + [(1.0, 0.0)] * 5 + [(1.0, 1.0)] * 15
    rounds = rounds_of(
        *((f"q{i}", [(label, 1.0)], [[(u, 1.0)]]) for i, (label, u) in enumerate(cells))
    )
    found = agreement(rounds)["utility"]
    assert found["confusion"] == [[20, 10], [5, 15]]
    assert found["agreement"]["value"] == pytest.approx(0.7)
    assert found["kappa"]["value"] == pytest.approx(0.4)
    assert found["recall"]["1"]["value"] == pytest.approx(15 / 20)
    assert found["precision"]["0"]["value"] == pytest.approx(20 / 25)
    assert found["label_share"]["value"] == pytest.approx(0.4)
    assert found["verdict_share"]["value"] == pytest.approx(0.5)
    assert found["agreement"]["n"] == 50


@pytest.mark.parametrize("signal", ["utility", "correctness", "contribution"])
def test_all_numbers_are_those_of_scikit_learn(noisy, signal):
    found = agreement(noisy)[signal]
    cast = votes(noisy, signal)
    assert len(cast) == found["verdicts"] > 400
    assert found["confusion"] == confusion_matrix(cast.label, cast.verdict).tolist()
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(cast.label, cast.verdict))
    for c in (0, 1):
        pair = (cast.label, cast.verdict)
        recall = recall_score(*pair, pos_label=c)
        precision = precision_score(*pair, pos_label=c)
        assert found["recall"][str(c)]["value"] == pytest.approx(recall)
        assert found["precision"][str(c)]["value"] == pytest.approx(precision)


def test_intervals_are_those_of_a_loop_that_draws_whole_questions(noisy):
    bootstrap = bootstrap_of(noisy)
    found = agreement_summary(noisy, bootstrap)["utility"]
    cast = votes(noisy, "utility")
    names = sorted(set(cast.question.tolist()))
    rows = [np.flatnonzero(cast.question == name) for name in names]
    kappas, recalls = [], []
    for weights in bootstrap.weights:
        drawn = np.concatenate([np.tile(rows[q], int(n)) for q, n in enumerate(weights)])
        pair = (cast.label[drawn], cast.verdict[drawn])
        kappas.append(cohen_kappa_score(*pair))
        recalls.append(recall_score(*pair))
    for name, drawn in (("kappa", kappas), ("recall", recalls)):
        estimate = found[name]["1"] if name == "recall" else found[name]
        low, high = np.percentile(drawn, [2.5, 97.5])
        assert (estimate["low"], estimate["high"]) == pytest.approx((low, high))


def test_more_rounds_of_the_same_questions_do_not_narrow_the_interval(noisy):
    once = agreement(noisy)["utility"]["agreement"]
    five_times = agreement(noisy * 5)["utility"]["agreement"]
    assert five_times == pytest.approx(once)


def test_draws_are_of_as_many_questions_as_there_are_and_the_same_every_time(noisy):
    first, second = bootstrap_of(noisy).weights, bootstrap_of(noisy).weights
    assert (first == second).all()
    assert (first.sum(axis=1) == 60).all()
    assert len(np.unique(first, axis=0)) > 190


def test_rounds_without_verdict_or_label_are_counted_and_left_out():
    rounds = rounds_of(
        ("a", [YES, YES, None], [[YES, None, NO], [NO, None, NO]]), ("b", [NO], [[NO], [None]])
    )
    assert counts(rounds) == {"rounds": 4, "unlabelled": 1, "asked": 8, "without_verdict": 3}
    found = agreement(rounds)["utility"]
    assert found["confusion"] == [[1, 0], [1, 1]]
    assert found["verdicts"] == 3


def test_the_product_is_1_where_both_factors_are():
    rounds = rounds_of(("a", [YES, (1.0, 0.0)], [[(0.6, 0.6), (1.0, 0.4)]]))
    assert agreement(rounds)["contribution"]["confusion"] == [[1, 0], [0, 1]]


def test_a_judge_that_is_always_right_has_an_interval_all_the_same():
    rounds = rounds_of(*((f"q{i}", [YES, NO], [[YES, NO]]) for i in range(20)))
    found = agreement(rounds)["utility"]
    assert found["agreement"]["value"] == found["kappa"]["value"] == 1.0
    # Wilson's interval of 20 of 20; chance agreement is one half
    assert found["agreement"]["low"] == pytest.approx(0.8389, abs=1e-4)
    assert found["kappa"]["low"] == pytest.approx(2 * found["agreement"]["low"] - 1)


def test_what_cannot_be_measured_is_none_and_no_number():
    rounds = rounds_of(("a", [YES], [[YES]]), ("b", [YES], [[YES]]))
    found = agreement(rounds)["utility"]
    assert found["kappa"]["value"] is None
    assert found["recall"]["0"] == {"value": None, "low": None, "high": None, "n": 0}
    assert found["recall"]["1"]["value"] == 1.0


def test_one_question_alone_has_no_interval():
    rounds = rounds_of(("a", [YES, NO], [[YES, YES]]))
    found = agreement(rounds)["utility"]["agreement"]
    assert (found["value"], found["low"], found["high"]) == (0.5, None, None)


def test_brier_score_and_bins_are_those_of_scikit_learn(noisy):
    found = calibration_summary(noisy, bootstrap_of(noisy))
    label = np.array([r.label.utility for r in noisy])
    confidence = np.array([np.mean([v.utility for v in r.given]) for r in noisy])
    assert found["utility"]["brier"]["value"] == pytest.approx(brier_score_loss(label, confidence))
    share, mean = calibration_curve(label, confidence, n_bins=10, strategy="uniform")
    bins = found["utility"]["bins"]
    assert [b["label_share"] for b in bins] == pytest.approx(share.tolist())
    assert [b["confidence"] for b in bins] == pytest.approx(mean.tolist())
    assert sum(b["rounds"] for b in bins) == len(noisy)


def test_calibration_error_is_that_worked_out_by_hand():
    # confidence 2/3 on two rounds, one of them 1; confidence 0 on one round that is 1
    rounds = rounds_of(
        ("a", [YES, NO], [[YES, YES], [YES, YES], [NO, NO]]), ("b", [YES], [[NO], [NO], [NO]])
    )
    found = calibration_summary(rounds, bootstrap_of(rounds))["utility"]
    assert found["ece"]["value"] == pytest.approx((2 * (2 / 3 - 1 / 2) + 1) / 3)
    assert found["brier"]["value"] == pytest.approx((1 / 9 + 4 / 9 + 1) / 3)
    assert [(b["low"], b["rounds"]) for b in found["bins"]] == [(0.0, 1), (0.6, 2)]


def test_one_verdict_of_0_or_1_is_no_confidence_but_a_fraction_is():
    sure = rounds_of(("a", [YES], [[YES]]))
    assert calibration_summary(sure, bootstrap_of(sure)) is None
    unsure = rounds_of(("a", [YES], [[(0.75, 1.0)]]))
    assert calibration_summary(unsure, bootstrap_of(unsure))["utility"]["rounds"] == 1


def test_consistency_counts_equal_repeats_and_equal_pairs():
    rounds = rounds_of(
        ("a", [YES, YES], [[YES, YES], [YES, NO], [YES, YES]]),
        ("b", [None], [[(0.0, 1.0)], [None], [(0.0, 0.0)]]),
    )
    found = consistency_summary(rounds, bootstrap_of(rounds))
    assert found["utility"]["rounds"] == 3  # labels do not matter
    assert found["utility"]["unanimous"]["value"] == pytest.approx(2 / 3)
    assert found["utility"]["pairwise"]["value"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert found["correctness"]["unanimous"]["value"] == pytest.approx(1 / 3)


def test_without_repeats_there_is_no_consistency():
    rounds = rounds_of(("a", [YES], [[YES]]))
    assert consistency_summary(rounds, bootstrap_of(rounds)) is None


def test_a_judge_that_likes_late_rounds_shows_in_their_excess():
    rounds = rounds_of(*((f"q{i}", [NO, NO], [[NO, (float(i < 6), 0.0)]]) for i in range(10)))
    first, second = by_round(rounds, bootstrap_of(rounds))
    assert (first["round"], second["round"]) == (1, 2)
    assert first["utility"]["excess"]["value"] == 0.0
    assert second["utility"]["excess"]["value"] == pytest.approx(0.6)
    assert second["utility"]["excess"]["low"] > 0.2
    assert second["utility"]["agreement"]["value"] == pytest.approx(0.4)
    assert second["correctness"]["excess"]["value"] == 0.0


def test_a_judge_that_likes_long_rounds_shows_in_the_last_quartile():
    labels = [NO] * 8
    played = trace("q", labels, lengths=range(10, 90, 10))
    said = [verdict((float(i >= 6), 0.0)) for i in range(8)]
    entries = by_length(
        judged_rounds([played], [[said]]), bootstrap_of(judged_rounds([played], [[said]]))
    )
    assert [e["rounds"] for e in entries] == [2, 2, 2, 2]
    assert [e["utility"]["excess"]["value"] for e in entries] == [0.0, 0.0, 0.0, 1.0]
    passages = len("title 1 ") + len("passage 1 ")
    assert entries[0]["chars"] == [10 + passages, 20 + passages]


def test_rounds_of_one_length_are_in_one_quartile():
    rounds = rounds_of(("q", [YES] * 5, [[YES] * 5]))
    assert [e["rounds"] for e in by_length(rounds, bootstrap_of(rounds))] == [5]


def test_kinds_of_rounds_are_told_apart_where_traces_name_them():
    played = trace("q", [YES, NO, NO], kinds=["found", "missed", "missed"])
    rounds = judged_rounds([played], [[[verdict(YES), verdict(YES), None]]])
    found, missed = by_kind(rounds, bootstrap_of(rounds))
    assert (found["kind"], found["utility"]["agreement"]["value"]) == ("found", 1.0)
    assert (missed["kind"], missed["rounds"], missed["without_verdict"]) == ("missed", 2, 1)
    assert missed["utility"]["agreement"]["value"] == 0.0
    assert by_kind(rounds_of(("q", [YES], [[YES]])), bootstrap_of(rounds)) == []


def test_resamples_that_are_all_equal_are_no_interval_of_width_0():
    never_wrong = rounds_of(*((f"q{i}", [YES], [[YES], [YES]]) for i in range(4)))
    (entry,) = by_round(never_wrong, bootstrap_of(never_wrong))
    assert entry["utility"]["excess"] == {"value": 0.0, "low": None, "high": None, "n": 4}
    found = calibration_summary(never_wrong, bootstrap_of(never_wrong))["utility"]
    for name in ("brier", "ece"):
        assert found[name] == {"value": 0.0, "low": None, "high": None, "n": 4}
    # a share of one half in every question: as little spread, and no share of 0 or 1
    halves = rounds_of(*((f"q{i}", [YES, YES], [[YES, NO]]) for i in range(4)))
    assert agreement(halves)["utility"]["agreement"]["low"] is None
    assert number_text(found["brier"]) == "0.00 (no interval)"
    assert share_text(agreement(halves)["utility"]["agreement"]) == "50.0 % (no interval)"


def test_costs_are_a_round_and_a_repeat():
    cost = cost_summary(
        {"calls": 50.0, "prompt_tokens": 4000.0, "money": 0.2, "rounds": 40.0, "bad_answers": 10.0},
        asked=40,
        seconds=8.0,
    )
    assert cost["a_round"] == {
        "calls": 1.25,
        "prompt_tokens": 100.0,
        "money": 0.005,
        "seconds": 0.2,
    }
    assert cost["total"]["money"] == 0.2
    assert (cost["bad_answers"], cost["cache_hits"]) == (10, 0)


def test_the_whole_summary_is_json_without_nan(noisy):
    summary = audit_summary(noisy, {"calls": 3.0}, seconds=1.0, resamples=100)
    content = json.dumps(summary, allow_nan=False)
    assert json.loads(content) == summary
    assert summary["questions"] == 60
    assert summary["repeats"] == 3
    assert summary["labelled_by"] == {"evidence": 60}
    assert math.isclose(summary["cost"]["a_round"]["calls"], 3.0 / (3 * len(noisy)))


def test_the_terminal_has_confusion_and_both_biases_with_their_intervals(noisy):
    numbers = audit_summary(noisy, {}, seconds=1.0, resamples=100)
    tables = {
        str(table.title): [list(column.cells) for column in table.columns]
        for table in audit_tables({**numbers, "judge": {"name": "some"}})
    }
    _, *columns = tables["verdicts, counted"]
    u, v = (numbers["signals"][s]["confusion"] for s in ("utility", "correctness"))
    counted = [[f"{row[i]:,}" for row in signal] for signal in (u, v) for i in (0, 1)]
    assert columns[:4] == counted
    biases = {"number of round": "by_round", "length of round": "by_length"}
    for by, key in biases.items():
        (columns,) = (found for title, found in tables.items() if by in title)
        for row, entry in zip(zip(*columns, strict=True), numbers[key], strict=True):
            excess = entry["utility"]["excess"]
            assert row[4].startswith(f"{100 * excess['value']:+.1f} (")
            assert f"{100 * excess['high']:+.1f}" in row[4]
            assert row[2] == share_text(entry["utility"]["agreement"])


def test_an_audit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="round"):
        audit_summary([], {}, seconds=1.0, resamples=100)


def test_verdicts_of_another_number_of_rounds_are_refused():
    with pytest.raises(ValueError):
        judged_rounds([trace("q", [YES, NO])], [[[verdict(YES)]]])
