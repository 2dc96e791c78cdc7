"""Files of labelled traces: what one question is, and lines that are refused by file and number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.judging.audit import audit_summary
from pipeline.judging.judged import judged_rounds
from pipeline.judging.traces import read_traces, write_traces
from pipeline.types import Verdict
from tests.support.traces import traces

ROUND = {
    "reasoning": "so",
    "query": "who?",
    "passages": [{"id": 7, "title": "t", "text": "x"}],
    "label": {"utility": 1, "correctness": 0},
}


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "nq/0", "question": "Who?", "rounds": [ROUND], **changes}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.jsonl", traces())
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])["question_id"] == "q1"
    write_traces(tmp_path / "again.jsonl", read_traces(tmp_path / "t.jsonl"))
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "t.jsonl").read_text()


def test_different_questions_under_ids_of_one_stem_are_as_many_units(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl", *(row(id=f"nq/{n}", question=f"Who is {n}?") for n in range(30))
    )
    read = read_traces(path)
    verdicts = [[(Verdict(utility=n % 2, correctness=0),)] for n in range(30)]
    summary = audit_summary(judged_rounds(read, verdicts), {}, seconds=1.0, resamples=200)
    assert summary["questions"] == summary["signals"]["utility"]["agreement"]["n"] == 30


def test_samples_of_one_question_are_one_unit_by_its_id_or_else_its_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        row(id="a", question="Who?"),
        row(id="b", question=" Who? "),
        row(id="c", question="Who else?", question_id="x"),
        row(id="d", question="Who then?", question_id="x"),
    )
    assert [t.trajectory.question.id for t in read_traces(path)] == ["Who?", "Who?", "x", "x"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row(rounds=[{**ROUND, "query": None}]), "query must be a text, found null"),
        (row(rounds=[{**ROUND, "reasoning": None}]), "reasoning must be a text, found null"),
        (row(rounds=[{**ROUND, "reasoning": 3}]), "reasoning must be a text, found 3"),
        (row(rounds=[{**ROUND, "passages": "x"}]), "passages must be a list"),
        (row(rounds=[{**ROUND, "passages": [{"text": None}]}]), "text must be a text"),
        (row(rounds=[{**ROUND, "passages": [{"text": "x", "title": None}]}]), "title must be"),
        (row(rounds=[{**ROUND, "label": {"utility": "1", "correctness": 0}}]), "utility must be"),
        (row(rounds=[{**ROUND, "label": {"utility": 2, "correctness": 0}}]), "from 0 to 1"),
        (row(rounds=[{**ROUND, "label": [1, 0]}]), "a label must be an object"),
        (row(rounds=["x"]), "a round must be an object"),
        (row(rounds={}), "rounds must be a list"),
        (row(question=None), "question must be a text"),
        (row(question_id=None), "question_id must be a text"),
        (row(id=None), "id must be a text"),
        (row(answer=5), "answer must be a text"),
        (row(golden_answers="x"), "golden_answers must be a list"),
        (row(metadata={"evidence": "e1"}), "metadata.evidence must be a list"),
        ([1], "a trace must be an object"),
        ({"id": "1", "question": "Who?"}, "'rounds' is missing"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, bad: Any, problem: str) -> None:
    path = write(tmp_path / "t.jsonl", row(), bad)
    with pytest.raises(UserError) as refused:
        read_traces(path)
    assert f"{path}:2: " in str(refused.value)
    assert problem in str(refused.value)


def test_a_line_that_is_not_utf_8_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n" + '{"id": "café"}'.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{path}:2: not UTF-8 .*at byte 12 .*Remedy"):
        read_traces(path)
