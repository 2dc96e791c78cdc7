"""The small judge's lessons: rationales that follow from the rounds, traces made of traces."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.judging.lessons import encode_lesson, lesson_verdicts, lessons_of
from pipeline.judging.perturb import Bystanders, missed, perturbed, wrong_turn
from pipeline.judging.prompt import read_prompt
from pipeline.judging.school import JSON_PIECES, LessonBook, retold
from pipeline.judging.traces import make_trajectory
from pipeline.judging.training_config import JudgeTrainingConfig
from pipeline.judging.verdict_form import parse_verdicts
from pipeline.types import Passage, Trajectory
from pipeline.warmstart.substitute import NameMaker
from tests.support.traces import (
    CAPITAL,
    FAILED,
    GOOD,
    GUESS,
    LATE,
    NEXT,
    QUESTION,
    traces,
    trajectory_of,
)

EMPTY = ("", "", ())
TOGETHER = (GOOD[0], GOOD[1], (*GOOD[2], CAPITAL))
PLAN = "Plan: country, capital."


def rationales(trajectory: Trajectory) -> list[str]:
    return [v.rationale.removeprefix(PLAN).strip() for v in lesson_verdicts(trajectory)]


def signals(trajectory: Trajectory) -> list[tuple[float, float]]:
    return [(v.utility, v.correctness) for v in lesson_verdicts(trajectory)]


def everything() -> list[Trajectory]:
    return [trace.trajectory for trace in traces()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained("assets/policy")


def test_a_rationale_goes_through_the_rounds_up_to_the_one_it_is_of() -> None:
    assert rationales(trajectory_of(FAILED, GOOD, NEXT, LATE)) == [
        "Round 1: country of Nakuru is unknown. Needed.",
        "Round 1: country of Nakuru is unknown. Round 2: country of Nakuru is Kenya. Needed.",
        "Round 1: country of Nakuru is unknown. Round 2: country of Nakuru is Kenya. Round 3: "
        "capital of Kenya is Nairobi. Needed.",
        "Round 1: country of Nakuru is unknown. Round 2: country of Nakuru is Kenya. Round 3: "
        "capital of Kenya is Nairobi. Round 4: nothing missing. Known already.",
    ]


@pytest.mark.parametrize(
    ("rows", "last", "verdict"),
    [
        ((GUESS,), "country of Nakuru is Kenya. Unsupported: uganda.", (1, 0)),
        ((GOOD, GOOD), "capital of Kenya is unknown. Repeats.", (0, 0)),
        ((GOOD, EMPTY), "capital of Kenya is unknown. Empty.", (0, 0)),
        ((TOGETHER,), "country of Nakuru is Kenya, capital of Kenya is Nairobi. Needed.", (1, 1)),
        # what comes next was found first: what was sought stays so
        (
            (NEXT,),
            "country of Nakuru is unknown, capital of Kenya is Nairobi. Unsupported: kenya.",
            (1, 0),
        ),
        ((NEXT, GOOD), "country of Nakuru is Kenya. Needed.", (1, 1)),
    ],
)
def test_a_rationale_ends_with_what_the_verdict_follows_from(
    rows: tuple[tuple[str, str, tuple[Passage, ...]], ...], last: str, verdict: tuple[int, int]
) -> None:
    played = trajectory_of(*rows)
    assert rationales(played)[-1].endswith(f"Round {len(rows)}: {last}")
    assert signals(played)[-1] == verdict


def test_the_answer_of_a_lesson_is_a_verdict_that_the_parser_takes() -> None:
    prompt = read_prompt("small_v1")
    played = trajectory_of(FAILED, GOOD, NEXT)
    expected = lesson_verdicts(played)
    each = [answer for _, answer in lessons_of(played, prompt, b"1" * 8, together=False)]
    limit = prompt.rationale_chars
    assert [v for a in each for v in parse_verdicts(a, None, limit)] == expected
    ((_, answer),) = lessons_of(played, prompt, b"1" * 8, together=True)
    assert parse_verdicts(answer, 3, limit) == expected


def test_a_lesson_teaches_its_answer_and_reads_the_rest(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompt, played = read_prompt("small_v1"), trajectory_of(GOOD)
    ((messages, answer),) = lessons_of(played, prompt, b"1" * 8, together=False)
    encoded = encode_lesson(messages, answer, tokenizer)
    learnt = [i for i, learns in zip(encoded.token_ids, encoded.trained, strict=True) if learns]
    assert tokenizer.decode(learnt) == f"{answer}{tokenizer.eos_token}"
    assert encoded.read == [not learns for learns in encoded.trained]


@pytest.mark.parametrize("seed", range(20))
def test_a_retold_lesson_says_what_its_own_passages_say(seed: int) -> None:
    """An answer under its old name would teach the judge to make answers up."""
    names = NameMaker(words=("Altun", "Berek", "Corvin", "Dalmar"))
    told = retold(trajectory_of(GOOD, NEXT), names, random.Random(seed))
    last = lesson_verdicts(told)[-1].rationale
    found = re.findall(r"(?:country|capital) of (.+?) is (.+?)\. ", last)
    assert len(found) == 2
    for (subject, answer), played in zip(found, told.search_rounds, strict=True):
        assert subject in played.passages[0].text
        assert answer in played.passages[0].text
    assert "Kenya" not in last
    assert "Nairobi" not in last


def test_a_missed_search_lacks_the_evidence_and_is_of_no_use() -> None:
    played = missed(trajectory_of(GOOD), random.Random(0))
    assert [p.doc_id for p in played.search_rounds[0].passages] == ["x1"]
    assert signals(played) == [(0, 1)]
    without = trajectory_of(FAILED)
    assert missed(without, random.Random(0)) is without


def test_a_wrong_turn_finds_the_right_relation_of_the_wrong_thing() -> None:
    hop = {"relation": "city_country", "subject": "Cusco", "answer": "Peru", "evidence": "e3"}
    other = replace(QUESTION, id="q2", evidence=("e3",), metadata={"plan": [hop]})
    passage = Passage(doc_id="e3", title="Cusco", text="Cusco is a city in Peru.")
    others = Bystanders(
        [make_trajectory(other, [("Next: country of Cusco.", "In which country?", (passage,))])]
    )
    for seed in range(20):
        turned = wrong_turn(trajectory_of(GOOD), others, random.Random(seed))
        first = turned.search_rounds[0]
        assert (first.query, first.passages[0].doc_id) == ("In which country?", "e3")
        assert signals(turned)[0] == (0, 0)
    without = trajectory_of(FAILED)  # there is no hop that it could miss
    assert wrong_turn(without, others, random.Random(0)) is without


def test_every_kind_of_change_comes_up_and_what_is_changed_can_be_labelled() -> None:
    others, rng = Bystanders(everything()), random.Random(0)
    objections = set()
    for _ in range(300):
        changed = perturbed(rng.choice(everything()), others, rng)
        for verdict in lesson_verdicts(changed):
            objections.add(verdict.rationale.rpartition(". ")[2].partition(":")[0])
            assert verdict.utility in (0, 1)
    assert objections == {"Needed.", "Repeats.", "Empty.", "Known already.", "Unsupported"}


def test_later_rounds_are_taught_more_often(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = JudgeTrainingConfig(perturbed=0.0, substitute=0.0, together=0.0)
    book = LessonBook([trajectory_of(GOOD, NEXT, LATE)], tokenizer, settings)
    asked = [
        re.search(r"Judge round (\d)", tokenizer.decode(lesson.token_ids))
        for lesson in itertools.islice(book.lessons(random.Random(0)), 600)
    ]
    counts = [sum(m is not None and m[1] == str(n) for m in asked) for n in (1, 2, 3)]
    assert sum(counts) == 600
    assert counts[0] < counts[1] < counts[2]


def test_the_pieces_of_json_are_what_traces_and_verdicts_are_written_with() -> None:
    prompt = read_prompt("small_v1")
    written = ""
    for played in [*everything(), trajectory_of(GOOD, EMPTY)]:
        for together in (False, True):
            for messages, answer in lessons_of(played, prompt, b"1" * 8, together=together):
                written += messages[-1]["content"] + answer
    assert [piece for piece in JSON_PIECES if piece not in written] == []
