"""What a judge must answer: written, read back, and nothing else believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judging.verdict_form import (
    VerdictError,
    parse_verdicts,
    verdict_schema,
    write_verdicts,
)
from pipeline.types import Verdict

PROPERTY = settings(max_examples=60)
LIMIT = 40
SIGNAL = st.sampled_from([0.0, 1.0])
VERDICT = st.builds(Verdict, utility=SIGNAL, correctness=SIGNAL, rationale=st.text(max_size=LIMIT))
VERDICTS = st.lists(VERDICT, min_size=1, max_size=5)
KEYS = ("rationale", "utility", "correctness")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*KEYS, "rounds"]) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


def row_of(verdict: Verdict) -> dict[str, Any]:
    return json.loads(write_verdicts([verdict], together=False))


@PROPERTY
@given(VERDICT)
def test_a_verdict_that_is_written_is_read_as_it_was(verdict: Verdict) -> None:
    text = write_verdicts([verdict], together=False)
    assert parse_verdicts(text, None, LIMIT) == [verdict]
    assert parse_verdicts(f" \n{text}\t ", None, LIMIT) == [verdict]


@PROPERTY
@given(VERDICTS)
def test_verdicts_of_all_rounds_are_read_in_order(verdicts: list[Verdict]) -> None:
    text = write_verdicts(verdicts, together=True)
    assert parse_verdicts(text, len(verdicts), LIMIT) == verdicts


@PROPERTY
@given(VERDICTS, st.integers(0, 7))
def test_another_number_of_rounds_is_refused(verdicts: list[Verdict], rounds: int) -> None:
    text = write_verdicts(verdicts, together=True)
    if rounds != len(verdicts):
        with pytest.raises(VerdictError):
            parse_verdicts(text, rounds, LIMIT)
    with pytest.raises(VerdictError):
        parse_verdicts(text, None, LIMIT)


@PROPERTY
@given(VERDICT)
def test_one_rounds_verdict_is_none_of_a_list(verdict: Verdict) -> None:
    with pytest.raises(VerdictError):
        parse_verdicts(write_verdicts([verdict], together=False), 1, LIMIT)


@PROPERTY
@given(VERDICT, st.sampled_from(KEYS))
def test_a_missing_key_is_refused(verdict: Verdict, key: str) -> None:
    row = row_of(verdict)
    del row[key]
    with pytest.raises(VerdictError):
        parse_verdicts(json.dumps(row), None, LIMIT)


@PROPERTY
@given(VERDICT, st.text(max_size=12).filter(lambda key: key not in KEYS), JSON)
def test_another_key_is_refused(verdict: Verdict, key: str, value: Any) -> None:
    with pytest.raises(VerdictError):
        parse_verdicts(json.dumps({**row_of(verdict), key: value}), None, LIMIT)
    rounds = {"rounds": [row_of(verdict)], key: value}
    with pytest.raises(VerdictError):
        parse_verdicts(json.dumps(rounds), 1, LIMIT)


@PROPERTY
@given(VERDICT, st.sampled_from(KEYS), st.sampled_from([str.upper, str.title, "{} ".format]))
def test_a_key_in_another_spelling_is_refused(
    verdict: Verdict, key: str, respelt: Callable[[str], str]
) -> None:
    row = {respelt(k) if k == key else k: v for k, v in row_of(verdict).items()}
    with pytest.raises(VerdictError):
        parse_verdicts(json.dumps(row), None, LIMIT)


@PROPERTY
@given(VERDICT, st.sampled_from(KEYS), SIGNAL)
def test_a_key_twice_is_refused_even_with_the_same_value(
    verdict: Verdict, key: str, value: float
) -> None:
    row = json.dumps(row_of(verdict))
    for second in (json.dumps(row_of(verdict)[key]), str(int(value))):
        with pytest.raises(VerdictError, match="twice"):
            parse_verdicts(f'{row[:-1]}, "{key}": {second}}}', None, LIMIT)


@PROPERTY
@given(VERDICT, st.sampled_from(["utility", "correctness"]), JSON)
def test_a_signal_that_is_not_exactly_0_or_1_is_refused(
    verdict: Verdict, key: str, value: Any
) -> None:
    text = json.dumps({**row_of(verdict), key: value})
    if type(value) is int and value in (0, 1):
        assert getattr(parse_verdicts(text, None, LIMIT)[0], key) == value
    else:
        with pytest.raises(VerdictError):
            parse_verdicts(text, None, LIMIT)


@PROPERTY
@given(VERDICT, JSON.filter(lambda value: not isinstance(value, str)))
def test_a_rationale_that_is_no_text_is_refused(verdict: Verdict, value: Any) -> None:
    with pytest.raises(VerdictError):
        parse_verdicts(json.dumps({**row_of(verdict), "rationale": value}), None, LIMIT)


@PROPERTY
@given(VERDICT, st.text(min_size=1, max_size=5).filter(lambda text: text.strip(" \t\r\n")))
def test_text_around_a_verdict_is_refused(verdict: Verdict, around: str) -> None:
    text = write_verdicts([verdict], together=False)
    for wrong in (around + text, text + around):
        with pytest.raises(VerdictError):
            parse_verdicts(wrong, None, LIMIT)


@PROPERTY
@given(VERDICT, st.data())
def test_a_verdict_that_breaks_off_is_refused(verdict: Verdict, data: st.DataObject) -> None:
    text = write_verdicts([verdict], together=False)
    with pytest.raises(VerdictError):
        parse_verdicts(text[: data.draw(st.integers(0, len(text) - 1))], None, LIMIT)


@PROPERTY
@given(st.text() | JSON.map(json.dumps), st.none() | st.integers(0, 3))
def test_whatever_comes_is_a_verdict_or_a_verdict_error(text: str, rounds: int | None) -> None:
    try:
        found = parse_verdicts(text, rounds, LIMIT)
    except VerdictError:
        return
    assert len(found) == (1 if rounds is None else rounds)


@pytest.mark.parametrize(
    "value",
    [
        "1" * 5000,  # more digits than Python makes a number of
        "[" * 100_000,
        "[" * 950 + "]" * 950,
        '{"a":' * 100_000,
        "-1",
        "1e0",
        "1.0",
        "01",
        "NaN",
        "Infinity",
        "true",
        '"1"',
        "0x1",
    ],
)
def test_strange_numbers_are_refused_as_no_verdict(value: str) -> None:
    with pytest.raises(VerdictError) as caught:
        parse_verdicts(f'{{"rationale": "", "utility": {value}, "correctness": 1}}', None, LIMIT)
    assert len(str(caught.value)) < 200


def test_a_rationale_is_cut_to_its_limit() -> None:
    row = {"rationale": "x" * 100, "utility": 1, "correctness": 0}
    (verdict,) = parse_verdicts(json.dumps(row), None, LIMIT)
    assert verdict == Verdict(utility=1, correctness=0, rationale="x" * LIMIT)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d", "?"),
        (r"a\ude00\ud83db", "a??b"),
        ("a\x1fb\nc", "a\x1fb\nc"),
    ],
)
def test_a_rationale_can_be_written_in_utf_8(written: str, read: str) -> None:
    text = f'{{"rationale": "{written}", "utility": 1, "correctness": 0}}'
    (verdict,) = parse_verdicts(text, None, LIMIT)
    assert verdict.rationale == read
    assert verdict.rationale.encode().decode() == read


def test_the_schema_asks_for_what_the_parser_takes() -> None:
    one = verdict_schema(None, LIMIT)
    assert one["required"] == list(one["properties"]) == list(KEYS)
    assert one["additionalProperties"] is False
    assert one["properties"]["rationale"] == {"type": "string", "maxLength": LIMIT}
    assert one["properties"]["utility"] == one["properties"]["correctness"]
    assert one["properties"]["utility"] == {"type": "integer", "enum": [0, 1]}
    rounds = verdict_schema(3, LIMIT)["properties"]["rounds"]
    assert (rounds["items"], rounds["minItems"], rounds["maxItems"]) == (one, 3, 3)
