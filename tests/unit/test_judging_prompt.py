"""The judge's prompt: what it shows, where its marks stand, which files it is read from."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.judging.prompt import JudgePrompt, new_secret, read_prompt
from pipeline.judging.traces import make_trajectory
from pipeline.types import Passage, Question, Trajectory
from tests.support.worded_trajectory import trajectory

PROPERTY = settings(max_examples=60)
SECRET = b"for tests"
OURS = {name: read_prompt(name) for name in ("criteria_v1", "small_v1")}
PROMPT = JudgePrompt(
    version="v",
    system="You judge.",
    each="{mark}\n{trace}\n{mark}\nRound {round} of {rounds}.",
    together="{mark}\n{trace}\n{mark}\nAll {rounds}.",
)
TEXT = st.text(max_size=20) | st.sampled_from(["{mark}", "{trace}", "{round}", '"}]}', "\n", ""])
TRAJECTORY = st.builds(
    lambda question, rounds: make_trajectory(
        Question(id="q", text=f"x{question}", answers=("a",)),
        [(r, q, [Passage(doc_id="1", title=t, text=p)]) for r, q, t, p in rounds],
    ),
    TEXT,
    st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT), min_size=1, max_size=4),
)


def mark_of(prompt: JudgePrompt, about: Trajectory, number: int, secret: bytes = SECRET) -> str:
    lines = prompt.ask_round(about, number, secret)[-1]["content"].split("\n")
    size = 2 * prompt.mark_bytes
    (mark,) = {line for line in lines if len(line) == size and set(line) <= set("0123456789abcdef")}
    return mark


def test_all_placeholders_are_filled_in() -> None:
    about = trajectory("x", "gold", "dust")
    system, user = PROMPT.ask_round(about, 1, SECRET)
    mark = mark_of(PROMPT, about, 1)
    assert system == {"role": "system", "content": "You judge."}
    assert user["role"] == "user"
    assert user["content"] == f"{mark}\n{PROMPT.trace(about, 1)}\n{mark}\nRound 1 of 2."
    (asked,) = replace(PROMPT, system="").ask_all(about, SECRET)
    assert asked["content"] == f"{mark}\n{PROMPT.trace(about, 2)}\n{mark}\nAll 2."


def test_a_trace_is_one_json_object_a_line() -> None:
    about = make_trajectory(
        Question(id="q", text='Who\n"?', answers=("a",)),
        [("I\nthink", "a query", [Passage(doc_id="7", title="T", text="one\n\ntwo")])],
        "the answer",
    )
    assert [json.loads(line) for line in PROMPT.trace(about, 1).split("\n")] == [
        {"question": 'Who "?'},
        {
            "round": 1,
            "reasoning": "I think",
            "query": "a query",
            "passages": [{"title": "T", "text": "one two"}],
        },
    ]


def test_placeholders_in_a_trace_are_text() -> None:
    about = make_trajectory(
        Question(id="q", text="{mark} {trace} {round} {rounds} {0} %s", answers=("a",)),
        [("{mark}", "{trace}", [])],
    )
    user = PROMPT.ask_round(about, 1, SECRET)[-1]["content"]
    assert '{"question": "{mark} {trace} {round} {rounds} {0} %s"}' in user
    assert '"reasoning": "{mark}", "query": "{trace}"' in user


def test_texts_are_cut_to_the_files_limits() -> None:
    short = replace(PROMPT, question_chars=20, reasoning_chars=30, query_chars=25, passage_chars=35)
    long = "word " * 50
    about = make_trajectory(
        Question(id="q", text=long, answers=("a",)),
        [(long, long, [Passage(doc_id="1", title=long, text=long)])],
    )
    question, shown = (json.loads(line) for line in short.trace(about, 1).split("\n"))
    (passage,) = shown["passages"]
    for text, limit in [
        (question["question"], 20),
        (shown["reasoning"], 30),
        (shown["query"], 25),
        (passage["title"], 25),
        (passage["text"], 35),
    ]:
        assert limit - 5 <= len(text) <= limit
        assert "[...]" in text


@PROPERTY
@given(TRAJECTORY)
def test_what_a_round_is_asked_with_is_the_beginning_of_what_the_next_is(about: Trajectory) -> None:
    """An engine's prefix cache then computes the history once."""
    for prompt in OURS.values():
        for number in range(1, len(about.search_rounds)):
            *system, this = prompt.ask_round(about, number, SECRET)
            *systems, following = prompt.ask_round(about, number + 1, SECRET)
            end = f"\n{mark_of(prompt, about, number)}\n"
            history, found, _ = this["content"].rpartition(end)
            assert found
            assert history.endswith(prompt.trace(about, number))
            assert following["content"].startswith(f"{history}\n")
            assert system == systems


@PROPERTY
@given(TRAJECTORY, st.integers(0, 3))
def test_a_trajectory_has_one_mark_that_stands_twice_on_a_line_of_its_own(
    about: Trajectory, extra: int
) -> None:
    numbers = range(1, len(about.search_rounds) + 1)
    (mark,) = {mark_of(PROMPT, about, number) for number in numbers}
    for number in numbers:
        lines = PROMPT.ask_round(about, number, SECRET)[-1]["content"].split("\n")
        assert lines.count(mark) == 2
        assert lines.index(mark) == 0
        trace = lines[1 : 1 + 1 + number]
        assert [set(json.loads(line)) >= {"round"} for line in trace] == [False] + [True] * number
        assert lines[2 + number] == mark
    lines = PROMPT.ask_all(about, SECRET)[-1]["content"].split("\n")
    assert lines.count(mark) == 2


def test_trajectories_of_a_question_that_begin_alike_are_asked_in_the_same_words() -> None:
    one, other = trajectory("x", "gold", "dust"), trajectory("x", "gold", "silver")
    prompt = replace(PROMPT, each="{mark}\n{trace}\n{mark}\nRound {round}.")
    assert prompt.ask_round(one, 1, SECRET) == prompt.ask_round(other, 1, SECRET)
    assert prompt.ask_round(one, 2, SECRET) != prompt.ask_round(other, 2, SECRET)


def test_marks_of_different_questions_and_secrets_differ() -> None:
    abouts = [trajectory("x", "gold"), trajectory("y", "gold")]
    secrets = [SECRET, b"another", new_secret(), new_secret()]
    marks = {mark_of(PROMPT, about, 1, secret) for about in abouts for secret in secrets}
    assert len(marks) == len(abouts) * len(secrets)
    assert {len(mark) for mark in marks} == {16}


@pytest.mark.parametrize("name", [field.name for field in fields(JudgePrompt)])
def test_whatever_the_file_says_otherwise_is_another_key_of_the_cache(name: str) -> None:
    value: Any = getattr(PROMPT, name)
    changed = replace(PROMPT, **{name: value + 1 if isinstance(value, int) else value + " "})
    assert changed.fingerprint() != PROMPT.fingerprint()
    assert replace(changed, **{name: value}).fingerprint() == PROMPT.fingerprint()


@pytest.mark.parametrize("name", OURS)
def test_our_prompts_are_read_by_name_and_carry_their_version(name: str) -> None:
    prompt = read_prompt(name)
    assert prompt.version == name
    about = trajectory("x", "gold", "dust")
    for messages in (prompt.ask_round(about, 2, SECRET), prompt.ask_all(about, SECRET)):
        assert "{mark}" not in messages[-1]["content"]
        assert "2" in messages[-1]["content"].rpartition(mark_of(prompt, about, 2))[2]


GOOD = {
    "version": "mine",
    "system": "",
    "each": "{mark}\n{trace}\n{mark}\n{round}",
    "together": "{mark}\n{trace}\n{mark}\n{rounds}",
}


def test_a_file_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "query_chars": 9}))
    assert read_prompt(str(path)) == JudgePrompt(**GOOD, query_chars=9)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sytem": "typing error"}, "sytem"),
        ({"each": None}, "each"),
        ({"each": 5}, "each"),
        ({"version": 1}, "version"),
        ({"system": ["a", "b"]}, "system"),
        ({"each": "{trace} {round} {mark}"}, "each"),
        ({"each": "{mark} {mark} {trace} {round}"}, "each"),
        ({"each": "{mark} {trace} {trace} {mark} {round}"}, "each"),
        ({"each": "{mark} {trace} {mark}"}, "{round}"),
        ({"each": "{mark} {mark} {round}"}, "{trace}"),
        ({"together": "{mark} {trace} {mark} {round}"}, "{rounds}"),
        ({"mark_bytes": 0}, "mark_bytes"),
        ({"mark_bytes": 33}, "mark_bytes"),
        ({"rationale_chars": -1}, "rationale_chars"),
        ({"question_chars": "many"}, "question_chars"),
        ({"passage_chars": True}, "passage_chars"),
        ({"query_chars": 1.5}, "query_chars"),
    ],
)
def test_a_wrong_file_is_told_with_its_path_and_key(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(UserError) as caught:
        read_prompt(str(path))
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("missing", GOOD)
def test_a_file_without_a_key_is_told(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in GOOD.items() if k != missing}))
    with pytest.raises(UserError, match=missing):
        read_prompt(str(path))


@pytest.mark.parametrize("content", [b"", b"- a\n- b\n", b"just text", b"a: [", b"\xff\xfe\x00"])
def test_a_file_that_is_no_prompt_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        read_prompt(str(path))


@pytest.mark.parametrize("name", ["nothing_v9", "none/such.yaml", "", "../prompts/criteria_v9"])
def test_a_prompt_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match="criteria_v1, small_v1"):
        read_prompt(name)
