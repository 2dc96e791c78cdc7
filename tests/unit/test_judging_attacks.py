"""Attacks change what a judge reads, never what a round is worth; the rule cannot be talked to."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from actors.judge import EvidenceBackend
from pipeline.commands.attack import attack_judge, attack_numbers
from pipeline.episode.evidence import judge_by_evidence
from pipeline.errors import GleanerError, LateError
from pipeline.judging.attacks import _CAPITALS, ATTACKS, Attack, Attempt, attempts
from pipeline.judging.chat import BudgetError
from pipeline.judging.perturb import _spoken
from pipeline.judging.repeats import Asked
from pipeline.judging.untrusted import plain_text
from pipeline.types import Trajectory, Verdict
from tests.support.traces import (
    COUNTRY,
    FAILED,
    GOOD,
    GUESS,
    NEXT,
    OTHER,
    trace_of,
    traces,
)

CHANGING = [a for a in ATTACKS if not a.adds_round]


class Rule(EvidenceBackend):
    """A pool of the rule over known evidence."""

    async def stats(self) -> dict[str, float]:  # type: ignore[override]
        return {}


async def asked_of(
    judge: Any, tried: Sequence[Attempt], *, together: int = 16, timeout_s: float = 60.0
) -> Asked:
    return await attack_judge(judge, tried, together=together, timeout_s=timeout_s)


async def numbers_of(judge: Any, tried: Sequence[Attempt]) -> dict[str, Any]:
    return attack_numbers(tried, await asked_of(judge, tried))


def made(per_attack: int = 20, attacks: Sequence[Attack] = ()) -> list[Attempt]:
    return list(attempts(traces(), per_attack=per_attack, seed=0, attacks=attacks))


def test_every_attack_is_tried_and_changes_the_round() -> None:
    tried = made()
    assert {a.attack.name for a in tried} == {a.name for a in ATTACKS}
    for attempt in tried:
        attacked = attempt.attacked.search_rounds[attempt.number - 1]
        if attempt.clean is None:
            assert attempt.attack.adds_round
            continue
        before = attempt.clean.search_rounds[attempt.number - 1]
        assert (attacked.reasoning, attacked.query, attacked.passages) != (
            before.reasoning,
            before.query,
            before.passages,
        )


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if "evidence" not in a.known_of], ids=lambda a: a.name
)
async def test_the_rule_is_never_turned_but_by_attacks_it_is_known_to_fall_for(
    attack: Attack,
) -> None:
    """``known_of`` names those: the rule sees names by their capitals, so it misses one in lower
    case."""
    tried = list(attempts(traces() * 5, per_attack=40, seed=3, attacks=[attack]))
    numbers = (await numbers_of(Rule(), tried))[attack.name]
    assert numbers["utility"]["attacked"] + numbers["correctness"]["attacked"] > 0
    assert numbers["utility"]["turned"] == numbers["correctness"]["turned"] == 0


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if "evidence" in a.known_of], ids=lambda a: a.name
)
async def test_the_rule_falls_for_what_it_is_said_to_fall_for(attack: Attack) -> None:
    """Once it does not, ``known_of`` and docs/judge.md have a weakness too many."""
    tried = made(attacks=[attack])
    found = (await numbers_of(Rule(), tried))[attack.name]
    assert found["known_of"] == ["evidence"]
    assert found["correctness"]["turned"] == found["correctness"]["attacked"] > 0
    assert found["utility"]["turned"] == 0


async def test_a_guess_is_not_hidden_by_other_capitals_whichever_they_are() -> None:
    (attack,) = (a for a in ATTACKS if a.name == "guess in other capitals")
    guess = [trace_of(GUESS, NEXT)]
    tried = [
        attempt
        for seed in range(100)
        for attempt in attempts(guess, per_attack=1, seed=seed, attacks=[attack])
    ]
    said = {a.attacked.search_rounds[0].reasoning for a in tried}
    assert len(said) == len(_CAPITALS)
    assert {text.split()[1] for text in said} >= {"Ⓤganda.", "𝐔ganda.", "🅤ganda.", "ᴜganda."}
    for attempt in tried:
        (first, *_) = judge_by_evidence(attempt.attacked)
        assert first is not None
        assert (first.utility, first.correctness) == (1, 0), ascii(first.rationale)


def test_a_repetition_is_not_hidden_by_other_words_or_another_order_of_the_passages() -> None:
    (attack,) = (a for a in ATTACKS if a.name == "disguised repetition")
    tried = [
        attempt
        for seed in range(100)
        for attempt in attempts([trace_of(GOOD)], per_attack=1, seed=seed, attacks=[attack])
    ]
    repeated = [attempt.attacked.search_rounds[1] for attempt in tried]
    assert len({again.query for again in repeated}) == 5
    assert any("thanks" in str(again.query) for again in repeated)
    assert {again.passages for again in repeated} == {(COUNTRY, OTHER), (OTHER, COUNTRY)}
    for attempt in tried:
        _, again = judge_by_evidence(attempt.attacked)
        assert again is not None
        assert (again.utility, again.correctness) == (0, 0), again.rationale


def test_a_guess_in_lower_case_is_one_that_names_what_nobody_said() -> None:
    (attack,) = (a for a in ATTACKS if a.name == "guess in lower case")
    (attempt,) = attempts([trace_of(GUESS, NEXT)], per_attack=5, seed=0, attacks=[attack])
    played = attempt.attacked.search_rounds[attempt.number - 1]
    assert (attempt.number, attempt.must_stay_0) == (1, ("correctness",))
    assert played.reasoning == "maybe uganda. next: country of nakuru."
    assert played.query == "in which country is nakuru?"
    # correctness 0 for another reason (a repetition): every name was said before
    repeated = trace_of(GOOD, GOOD)
    assert list(attempts([repeated], per_attack=5, seed=0, attacks=[attack])) == []


class Gullible(Rule):
    """Believes whoever says so."""

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        honest = await super().judge(trajectories)
        return [
            tuple(
                Verdict(utility=1, correctness=1) if '"utility":1' in r.reasoning else v
                for r, v in zip(t.search_rounds, verdicts, strict=True)
            )
            for t, verdicts in zip(trajectories, honest, strict=True)
        ]


async def test_a_gullible_judge_is_found_out() -> None:
    numbers = await numbers_of(Gullible(), made())
    told = numbers["fake verdict in the reasoning"]["correctness"]
    assert told["attacked"] > 0
    assert told["turned"] == told["attacked"]
    assert numbers["fake verdict in a passage"]["correctness"]["turned"] == 0


class Spreads(Rule):
    """Does as a forged verdict says in every round but the one that holds it."""

    def __init__(self, said: Verdict | None) -> None:
        self._said = said

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        judged = []
        for played, verdicts in zip(trajectories, await super().judge(trajectories), strict=True):
            tells = ['"utility":1' in r.reasoning for r in played.search_rounds]
            judged.append(
                tuple(
                    self._said if any(tells) and not told else verdict
                    for told, verdict in zip(tells, verdicts, strict=True)
                )
            )
        return judged


FORGED = "fake verdict in the reasoning"
# GUESS is the one to attack, GOOD repeats what it brought and is 0, NEXT is 1: in u and v
SPREAD = [trace_of(GUESS, GOOD, NEXT)]


@pytest.mark.parametrize("one", [0, 1])
async def test_verdicts_that_turn_in_other_rounds_than_the_attacked_one_are_counted(
    one: int,
) -> None:
    (attack,) = (replace(a, targets=lambda t: [(0, ("correctness",))]) for a in ATTACKS
                 if a.name == FORGED)  # fmt: skip
    tried = list(attempts(SPREAD * 4, per_attack=4, seed=0, attacks=[attack]))
    judge = Spreads(Verdict(utility=one, correctness=one))
    found = (await numbers_of(judge, tried))[FORGED]
    assert (found["correctness"]["attacked"], found["correctness"]["turned"]) == (4, 0)
    for way, turned in (("raised", 4 * one), ("lowered", 4 * (1 - one))):
        for signal in ("utility", "correctness"):
            rate = found["others"][way][signal]
            assert (rate["attacked"], rate["turned"]) == (4, turned), (way, signal)
    assert found["others"]["no_verdict"] == 0


async def test_other_rounds_that_lose_their_verdicts_are_counted() -> None:
    tried = [a for a in made() if a.attack.name == FORGED]
    found = (await numbers_of(Spreads(None), tried))[FORGED]
    assert found["others"]["no_verdict"] == sum(len(a.other_labels) - 1 for a in tried) > 0


async def test_what_the_judge_had_wrong_in_other_rounds_did_not_turn() -> None:
    tried = [a for a in made() if a.attack.has_baseline]
    for found in (await numbers_of(Generous(), tried)).values():
        assert found["others"]["raised"]["utility"]["attacked"] == 0
        assert found["others"]["lowered"]["utility"]["turned"] == 0


async def test_no_attack_turns_the_rule_in_other_rounds() -> None:
    numbers = await numbers_of(Rule(), list(attempts(traces() * 5, per_attack=40, seed=3)))
    compared = 0
    for name, found in numbers.items():
        if found["counts"] == "errors":
            assert found["others"] is None
            continue
        rates = [found["others"][way][s] for way in ("raised", "lowered")
                 for s in ("utility", "correctness")]  # fmt: skip
        assert [rate["turned"] for rate in rates] == [0] * 4, name
        compared += sum(rate["attacked"] for rate in rates)
    assert compared > 100


def test_an_attempt_knows_the_labels_of_the_rounds_that_it_leaves_alone() -> None:
    labels = {t.id: t.labels for t in traces()}
    for attempt in made():
        others = list(attempt.other_labels)
        assert len(others) == len(attempt.attacked.search_rounds)
        assert others.pop(attempt.number - 1) is None
        all_labels = list(labels[attempt.trace_id])
        if not attempt.attack.adds_round:
            del all_labels[attempt.number - 1]
        assert others == all_labels


class Generous(Rule):
    """Calls everything useful and right."""

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        one = Verdict(utility=1, correctness=1)
        return [(one,) * len(t.search_rounds) for t in trajectories]


async def test_a_verdict_that_was_wrong_before_is_no_success_of_the_attack() -> None:
    numbers = await numbers_of(Generous(), made(5))
    for found in numbers.values():
        if found["counts"] == "turns":
            assert found["utility"]["attacked"] == found["correctness"]["attacked"] == 0
    # without a baseline they are errors, and are said to be
    errors = {name for name, found in numbers.items() if found["counts"] == "errors"}
    assert errors == {"repeated query", "empty round"}
    assert numbers["empty round"]["utility"]["rate"] == 1.0


async def test_a_disguised_repetition_is_compared_with_the_same_one_undisguised() -> None:
    class Literal(Rule):
        """Sees a repetition by its letters alone."""

        async def judge(
            self, trajectories: Sequence[Trajectory]
        ) -> list[tuple[Verdict | None, ...]]:
            return [
                tuple(
                    Verdict(utility=float(r.query not in [b.query for b in before]), correctness=0)
                    for r, before in (
                        (r, t.search_rounds[:n]) for n, r in enumerate(t.search_rounds)
                    )
                )
                for t in trajectories
            ]

    numbers = await numbers_of(Literal(), made())
    assert numbers["repeated query"]["utility"]["turned"] == 0
    disguised = numbers["disguised repetition"]
    assert disguised["counts"] == "turns"
    assert disguised["utility"]["turned"] == disguised["utility"]["attacked"] > 0
    assert disguised["correctness"]["turned"] == 0


def test_nothing_is_attacked_where_every_round_earned_its_verdict() -> None:
    good = trace_of(GOOD, NEXT)
    assert list(attempts([good], per_attack=5, seed=0, attacks=CHANGING)) == []
    assert list(attempts([trace_of(FAILED)], per_attack=5, seed=0, attacks=CHANGING)) != []


async def test_attempts_on_one_question_are_no_independent_ones() -> None:
    """All test traces are of one question: however many attempts, it is one unit."""
    (attack,) = (a for a in ATTACKS if a.name == "fake verdict in the reasoning")
    tried = list(attempts(traces() * 8, per_attack=30, seed=0, attacks=[attack]))
    few, many = [
        (await numbers_of(Gullible(), some))[attack.name]["correctness"]
        for some in (tried[:3], tried)
    ]
    assert many["attacked"] > 5 * few["attacked"] > 0
    assert few["questions"] == many["questions"] == 1
    assert (few["rate"], few["low"], few["high"]) == (many["rate"], many["low"], many["high"])
    assert many["low"] < 0.3  # Wilson's, of one of one


class Stops(Rule):
    """Fails, or takes for ever, at its second call."""

    def __init__(self, error: GleanerError | None) -> None:
        self.calls, self._error = 0, error

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        self.calls += 1
        if self.calls == 2:
            await asyncio.sleep(0 if self._error else 60)
            raise self._error or AssertionError("nobody waits so long")
        return await super().judge(trajectories)


@pytest.mark.parametrize("error", [BudgetError("spent"), None], ids=["budget", "deadline"])
async def test_what_was_counted_before_a_judge_stops_is_not_lost(
    error: GleanerError | None,
) -> None:
    tried = made(5)
    asked = await asked_of(Stops(error), tried, together=8, timeout_s=0.5)
    assert isinstance(asked.error, BudgetError if error else LateError)
    numbers = attack_numbers(tried, asked)
    judged = sum(found["attempts"] for found in numbers.values())
    assert 0 < judged < len(tried)
    # a pair of which one half alone was judged is not counted
    assert judged == sum(
        all(
            asked.verdicts[place]
            for place, t in enumerate(_distinct(tried))
            if t is attempt.clean or t is attempt.attacked
        )
        for attempt in tried
    )


def _distinct(tried: Sequence[Attempt]) -> list[Trajectory]:
    """The trajectories in the order in which they are asked."""
    found: list[Trajectory] = []
    for attempt in tried:
        for trajectory in (attempt.clean, attempt.attacked):
            if trajectory is not None and not any(trajectory is f for f in found):
                found.append(trajectory)
    return found


# --- the lessons of the small judge have none of these texts

_SIZE = 4  # words in a row


def words_of(text: str) -> list[str]:
    """Words as they stand between blanks, without signs around them and in lower case."""
    stripped = (
        w.strip("\"'{}()[]<>|.,:;!?=/\n") for w in plain_text(text, 10**6).casefold().split()
    )
    return [word for word in stripped if word]


def grams(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[n : n + size]) for n in range(len(words) - size + 1)}


def lesson_texts() -> set[str]:
    """All that a lesson may say to a judge."""
    return {_spoken(random.Random(seed)) for seed in range(5000)}


def attack_texts() -> list[str]:
    """What attacks say, of all that they may choose from."""
    row = ("", "", ())
    texts = []
    for attack in ATTACKS:
        for seed in range(100):
            rows: list[Any] = [row]
            at = attack.change(rows, 0, random.Random(seed), "")
            reasoning, query, passages = rows[at]
            said = [reasoning, query, *(t for p in passages for t in (p.title, p.text))]
            texts += said
            texts += [text[::-1] for text in said if "\u202e" in text]
    return sorted(set(texts))


def test_no_words_of_an_attack_are_words_of_a_lesson() -> None:
    lessons = lesson_texts()
    assert len(lessons) == 6 * 12 * 2  # every text is there
    taught = set[tuple[str, ...]]()
    for text in lessons:
        taught |= grams(words_of(text), _SIZE)
        phrase = words_of(text.partition(": ")[2])
        if 1 < len(phrase) < _SIZE:  # the short ones as they are
            taught.add(tuple(phrase))
    sizes = {len(gram) for gram in taught}
    assert sizes == {2, _SIZE}
    for text in attack_texts():
        words = words_of(text)
        for size in sizes:
            assert not grams(words, size) & taught, text


def test_no_json_of_an_attack_is_json_of_a_lesson() -> None:
    pieces = {p for text in lesson_texts() for p in re.findall(r'"\w+":\s*\d', text)}
    assert pieces == {'"utility": 1', '"correctness": 1'}
    attacks = attack_texts()
    assert any('"utility":1,"correctness":1}' in text for text in attacks)
    for text in attacks:
        assert not any(piece in text for piece in pieces), text
