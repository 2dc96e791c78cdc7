"""docs/judge.md and the small judge's card quote what was measured, figure by figure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judge_results import RESULTS
from pipeline.commands.audit_output import number_text, points_text

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs/judge.md").read_text(encoding="utf-8")
PROSE = re.sub(r"\s+", " ", DOC)
CARD = (ROOT / "assets/judge/README.md").read_text(encoding="utf-8")
FIGURES = json.loads((ROOT / "assets/judge/figures.json").read_text(encoding="utf-8"))
WAYS = {"each": "a call a round", "together": "a call a trajectory"}
SIGNALS = {"utility": "u", "correctness": "v", "contribution": "p = u v"}
Numbers = Mapping[str, Any]


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def share(estimate: Numbers, decimals: int = 1) -> str:
    low, high = (f"{100 * estimate[end]:.{decimals}f}" for end in ("low", "high"))
    return f"{percent(estimate)} ({low} to {high})"


def percent(estimate: Numbers) -> str:
    return f"{100 * estimate['value']:.1f} %"


def agreement_cells(of_signal: Numbers) -> tuple[str, ...]:
    return (
        share(of_signal["agreement"]),
        number_text(of_signal["kappa"]),
        share(of_signal["recall"]["0"]),
        share(of_signal["recall"]["1"]),
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_agreement_of_the_small_judge(way: str, signal: str) -> None:
    cells = agreement_cells(FIGURES[way]["signals"][signal])
    assert row(f"{SIGNALS[signal]}, {WAYS[way]}", *cells) in DOC
    assert row(way, signal, *cells) in CARD


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("signal", ["utility", "correctness"])
def test_its_agreement_on_other_rollouts(way: str, signal: str) -> None:
    found = result({"each": "audit_small", "together": "audit_small_together"}[way])
    cells = agreement_cells(found["signals"][signal])
    assert row(f"{SIGNALS[signal]}, {WAYS[way]}, again", *cells) in DOC
    assert f"({found['questions']} that searched, {found['counts']['rounds']:,} rounds" in PROSE


def test_what_the_small_judge_was_asked() -> None:
    for audit in FIGURES.values():
        questions, rounds = audit["questions"], audit["counts"]["rounds"]
        assert f"the {questions:,} that searched, {rounds:,} search rounds" in PROSE
        assert f"{questions} test questions ({rounds} search rounds)" in CARD


def biases(audit: Numbers) -> Iterator[tuple[str, Numbers]]:
    yield from ((f"round {e['round']}", e) for e in audit["by_round"])
    yield from (("{} to {} characters".format(*e["chars"]), e) for e in audit["by_length"])


def test_where_the_small_judge_errs() -> None:
    for name, entry in biases(FIGURES["each"]):
        u, v = entry["utility"], entry["correctness"]
        cells = [
            f(s[k]) for s in (u, v) for f, k in ((share, "agreement"), (points_text, "excess"))
        ]
        assert row(name, entry["rounds"], *cells) in DOC
    third = FIGURES["together"]["by_round"][2]["utility"]
    said = points_text(third["excess"]).replace(" (", " points, ").rstrip(")")
    assert f"third rounds: {percent(third['agreement'])}, {said})" in PROSE


def test_how_far_lengths_differ() -> None:
    differ = {
        way: [
            max(shares) - min(shares)
            for signal in ("utility", "correctness")
            for shares in [[100 * e[signal]["agreement"]["value"] for e in audit["by_length"]]]
        ]
        for way, audit in FIGURES.items()
    }
    assert "by {:.1f} points in u and {:.1f} in v".format(*differ["each"]) in PROSE
    assert "(a call a trajectory: {:.1f} and {:.1f})".format(*differ["together"]) in PROSE


def test_what_the_small_judge_costs() -> None:
    for way, audit in FIGURES.items():
        cost = audit["cost"]["a_round"]
        tokens = (f"{cost[name]:.0f}" for name in ("prompt_tokens", "cached_tokens"))
        answer, seconds = f"{cost['completion_tokens']:.1f}", f"{cost['seconds']:.3f}"
        assert row(WAYS[way], f"{cost['calls']:.2f}", *tokens, answer, seconds) in DOC
    again = [audit["cost"]["bad_answers"] for audit in FIGURES.values()]
    assert "asked again, {} and {} times".format(*again) in PROSE


def test_how_far_the_small_judge_repeats_itself() -> None:
    audit = result("audit_small_repeats")
    same = [audit["consistency"][signal] for signal in ("utility", "correctness")]
    u, v = (share(s["unanimous"], 0) for s in same)
    assert f"{audit['counts']['rounds']} rounds" in PROSE
    assert f"the same u in all five in {u.replace('%', '% of rounds')}, the same v in {v}" in PROSE
    for s in same:
        assert f"two answers agree in {100 * s['pairwise']['value']:.0f} %" in PROSE
    for signal in ("utility", "correctness"):
        found = audit["calibration"][signal]
        assert f"is off by {found['ece']['value']:.2f}" in PROSE
        assert f"Brier scores {found['brier']['value']:.2f}" in PROSE


def test_the_rule_on_questions_with_supporting_facts() -> None:
    audit = result("audit_rule_hotpotqa")
    wrong = {s: f["confusion"][0][1] + f["confusion"][1][0] for s, f in audit["signals"].items()}
    assert wrong == {"utility": 0, "correctness": 2, "contribution": 0}
    traces = f"{audit['traces']} scripted traces of {audit['questions']} HotpotQA questions"
    rounds = f"({audit['counts']['rounds']} rounds, labels from the supporting facts)"
    assert f"{traces} {rounds} it differs in two rounds" in PROSE


def counted(of_signal: Numbers, *, interval: bool) -> str:
    said = f"{of_signal['turned']} of {of_signal['attacked']}"
    if not interval:
        return said
    return f"{said} ({100 * of_signal['low']:.0f} to {100 * of_signal['high']:.0f} %)"


def test_every_attack_on_both_judges() -> None:
    rule, small = (result(f"attacks_{name}")["attacks"] for name in ("rule", "small"))
    assert rule.keys() == small.keys()
    assert f"in {len(rule)} ways" in PROSE
    for name, by_rule in rule.items():
        marked = name + (" *" if by_rule["counts"] == "errors" else "")
        cells = [
            counted(of[signal], interval=of is small[name])
            for of in (by_rule, small[name])
            for signal in ("utility", "correctness")
        ]
        assert row(marked, by_rule["where"], *cells) in DOC


def test_what_attacks_turned_in_all() -> None:
    turned: dict[str, int] = {}
    attacked = 0
    for name, found in result("attacks_small")["attacks"].items():
        if found["counts"] == "turns":
            turned[name] = sum(found[s]["turned"] for s in ("utility", "correctness"))
            attacked += sum(found[s]["attacked"] for s in ("utility", "correctness"))
    two = sum(sorted(turned.values())[-2:])
    said = f"{sum(turned.values())} of the {attacked} signals that attacks could turn"
    assert f"{said} in the small judge were turned, {two} of them by two" in PROSE


def test_the_ensemble_beside_the_small_judge_on_the_same_rounds() -> None:
    ensemble, small = result("audit_ensemble"), result("audit_small")
    both, alone = (
        [percent(audit["signals"][s]["agreement"]) for s in ("utility", "correctness")]
        for audit in (ensemble, small)
    )
    assert ensemble["counts"]["rounds"] == small["counts"]["rounds"]
    rounds = f"{ensemble['counts']['rounds']:,} rounds of other rollouts"
    assert f"agreement {both[0]} in u and {both[1]} in v ({rounds}" in PROSE
    assert f"the small judge alone has {alone[0]} and {alone[1]}" in PROSE
    guess = result("attacks_ensemble")["attacks"]["guess in lower case"]["correctness"]
    assert f"in place of 0 in v ({counted(guess, interval=False)})" in PROSE


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_what_is_kept_says_how_the_judge_was_asked_and_nothing_of_the_machine(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"judge", "source", "notes"} < found.keys()
    assert "/" not in found["source"]
    assert f"`{file.name}`" in DOC
