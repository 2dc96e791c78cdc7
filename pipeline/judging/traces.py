"""Labelled traces: trajectories with a label a search round, as JSON lines.

    {"id": "dev-1/0", "question_id": "dev-1", "question": "...", "golden_answers": ["..."],
     "metadata": {...},
     "rounds": [{"reasoning": "...", "query": "...", "passages": [{"id", "title", "text"}, ...],
                 "label": {"utility": 1, "correctness": 0, "rationale": "..."}}, ...],
     "answer": "...", "labelled_by": "evidence"}

``rounds`` are the search rounds; a label is ``null`` where nobody gave one. Traces of one
``question_id`` are samples of one question; where it is missing, those of one ``question`` are.
Judges are trained on such files, audited with them, and people label them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import write_lines
from pipeline.errors import UserError
from pipeline.types import Passage, Purpose, Question, Round, Status, Trajectory, Verdict

__all__ = [
    "LabelledTrace",
    "Row",
    "make_trajectory",
    "read_traces",
    "search_rows",
    "text_lines",
    "with_rows",
    "write_traces",
]

Row = tuple[str, str, tuple[Passage, ...]]  # reasoning, query, passages of a search round
_EMPTY_IDS = np.zeros(0, dtype=np.int32)
_EMPTY_LOGPROBS = np.zeros(0, dtype=np.float32)
_EXAMPLE = (
    '{"id": "1", "question": "Who ...?", "rounds": [{"reasoning": "...", "query": "...", '
    '"passages": [{"id": "7", "title": "...", "text": "..."}], '
    '"label": {"utility": 1, "correctness": 1}}]}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTrace:
    """A trajectory and its labels, one a search round, ``None`` where there is none."""

    id: str
    trajectory: Trajectory
    labels: tuple[Verdict | None, ...]
    labelled_by: str = "evidence"

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.trajectory.search_rounds):
            raise ValueError(
                f"trace {self.id!r} has {len(self.trajectory.search_rounds)} search rounds and "
                f"{len(self.labels)} labels"
            )


def make_trajectory(
    question: Question,
    search_rounds: Iterable[tuple[str, str, Sequence[Passage]]],
    answer: str | None = None,
    *,
    number: int = 0,
) -> Trajectory:
    """A trajectory without tokens: ``(reasoning, query, passages)`` a search round, then the
    answer round. ``number`` tells traces of one question apart."""
    rounds = [
        _round(reasoning=reasoning, query=query, passages=tuple(passages))
        for reasoning, query, passages in search_rounds
    ]
    return Trajectory(
        question=question,
        group_id=-1,
        sample_id=number,
        rounds=(*rounds, _round(answer=answer)),
        status=Status.NO_ACTION if answer is None else Status.ANSWERED,
        reward=0.0,
        purpose=Purpose.EVALUATE,
    )


def _round(**values: Any) -> Round:
    return Round(
        context_ids=_EMPTY_IDS,
        token_ids=_EMPTY_IDS,
        logprobs=_EMPTY_LOGPROBS,
        versions=_EMPTY_IDS,
        text="",
        **values,
    )


def write_traces(path: Path, traces: Iterable[LabelledTrace]) -> None:
    """Write JSON lines, atomically."""
    write_lines(path, (json.dumps(_row(trace), ensure_ascii=False) for trace in traces))


def search_rows(trajectory: Trajectory) -> list[Row]:
    """Its search rounds, to change them."""
    return [(r.reasoning, r.query or "", r.passages) for r in trajectory.search_rounds]


def with_rows(trajectory: Trajectory, rows: Iterable[Row]) -> Trajectory:
    """The trajectory with other search rounds."""
    return make_trajectory(
        trajectory.question, rows, trajectory.answer, number=trajectory.sample_id
    )


def read_traces(path: Path) -> list[LabelledTrace]:
    """All traces of a file. Raises UserError that names file, line and remedy."""
    if not path.is_file():
        raise UserError(f"trace file {path} does not exist. Remedy: correct the path")
    traces = list(_read(path))
    if not traces:
        raise UserError(f"{path} holds no traces. Remedy: add rows like {_EXAMPLE}")
    return traces


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers from 1. Raises UserError that
    names file and line where one is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start + 1} of the "
                    "line). Remedy: save the file as UTF-8"
                ) from None
            if text.strip():
                yield number, text


def _read(path: Path) -> Iterator[LabelledTrace]:
    for number, line in text_lines(path):
        try:
            yield _trace(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"the key {error} is missing" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path}:{number}: no labelled trace ({what}). Remedy: rows like {_EXAMPLE}"
            ) from error


def _row(trace: LabelledTrace) -> dict[str, Any]:
    question = trace.trajectory.question
    metadata = dict(question.metadata)
    if question.evidence is not None:
        metadata["evidence"] = list(question.evidence)
    return {
        "id": trace.id,
        "question_id": question.id,
        "question": question.text,
        "golden_answers": list(question.answers),
        "metadata": metadata,
        "rounds": [
            {
                "reasoning": r.reasoning,
                "query": r.query or "",
                "passages": [
                    {"id": p.doc_id, "title": p.title, "text": p.text} for p in r.passages
                ],
                "label": _label_row(label),
            }
            for r, label in zip(trace.trajectory.search_rounds, trace.labels, strict=True)
        ],
        "answer": trace.trajectory.answer,
        "labelled_by": trace.labelled_by,
    }


def _label_row(label: Verdict | None) -> dict[str, Any] | None:
    if label is None:
        return None
    return {
        "utility": label.utility,
        "correctness": label.correctness,
        "rationale": label.rationale,
    }


def _trace(value: Any) -> LabelledTrace:
    row = _object(value, "a trace")
    identifier = _name(row["id"], "id")
    metadata = dict(_object(row.get("metadata") or {}, "metadata"))
    evidence = metadata.get("evidence")
    text = _text(row["question"], "question")
    question = Question(
        id=_name(row["question_id"], "question_id") if "question_id" in row else _unit(text),
        text=text,
        answers=tuple(_texts(row.get("golden_answers") or [""], "golden_answers")),
        evidence=None if evidence is None else tuple(_names(evidence, "metadata.evidence")),
        metadata=metadata,
    )
    rounds = [_object(r, "a round") for r in _list(row["rounds"], "rounds")]
    answer = row.get("answer")
    suffix = identifier.rpartition("/")[2]
    return LabelledTrace(
        id=identifier,
        trajectory=make_trajectory(
            question,
            [
                (
                    _text(r["reasoning"], "reasoning"),
                    _text(r["query"], "query"),
                    [_passage(p) for p in _list(r["passages"], "passages")],
                )
                for r in rounds
            ],
            None if answer is None else _text(answer, "answer"),
            number=int(suffix) if suffix.isdecimal() else 0,
        ),
        labels=tuple(_label(r.get("label")) for r in rounds),
        labelled_by=_text(row.get("labelled_by") or "unknown", "labelled_by"),
    )


def _unit(question: str) -> str:
    """What a question without an id is told from others by: its text."""
    return " ".join(question.split())


def _passage(value: Any) -> Passage:
    row = _object(value, "a passage")
    return Passage(
        doc_id=_name(row.get("id", ""), "a passage's id"),
        title=_text(row.get("title", ""), "title"),
        text=_text(row["text"], "text"),
    )


def _label(value: Any) -> Verdict | None:
    if value is None:
        return None
    row = _object(value, "a label")
    return Verdict(
        utility=_signal(row["utility"], "utility"),
        correctness=_signal(row["correctness"], "correctness"),
        rationale=_text(row.get("rationale", ""), "rationale"),
    )


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _other(value, what, "an object")
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise _other(value, key, "a list")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _other(value, key, "a text")
    return value


def _texts(value: Any, key: str) -> list[str]:
    return [_text(item, key) for item in _list(value, key)]


def _name(value: Any, key: str) -> str:
    """An id: people also write numbers."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _other(value, key, "a text or a whole number")
    return str(value)


def _names(value: Any, key: str) -> list[str]:
    return [_name(item, key) for item in _list(value, key)]


def _signal(value: Any, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise _other(value, key, "a number from 0 to 1")
    return float(value)


def _other(value: Any, what: str, wanted: str) -> TypeError:
    return TypeError(f"{what} must be {wanted}, found {json.dumps(value)[:60]}")
