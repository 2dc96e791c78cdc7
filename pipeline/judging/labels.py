"""Labels by people: rows that go out without labels, and come back with them.

    {"id": "dev-1/0", "round": 1, "utility": 1, "correctness": 0, "note": "", "labelled_by": "NAME",
     "digest": "9f2c5e0b7a31d846"}

One JSON object a line, one line a search round. ``digest`` tells whether the round, and those
before it, are still the ones that were labelled; a row without one is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.judging.traces import LabelledTrace, text_lines
from pipeline.types import Verdict

__all__ = ["HumanLabels", "blank_rows", "merge_labels", "read_labels", "round_digest"]

_KEYS = ("id", "round", "utility", "correctness")
_OPTIONAL = ("note", "labelled_by", "digest")
_EXAMPLE = (
    '{"id": "dev-1/0", "round": 1, "utility": 1, "correctness": 0, "note": "", '
    '"labelled_by": "NAME"}'
)


@dataclass(frozen=True, slots=True)
class HumanLabels:
    """What a file of rows says: ``labels`` by trace id and round (from 1), with the note as
    rationale; ``names`` of those who labelled; ``skipped`` rows that lack a label."""

    labels: Mapping[tuple[str, int], Verdict]
    names: tuple[str, ...]
    skipped: int


def blank_rows(traces: Sequence[LabelledTrace]) -> Iterator[dict[str, Any]]:
    """A row a search round, its labels null: nothing in it tells what the labels are."""
    for trace in traces:
        for number in range(1, len(trace.labels) + 1):
            yield {
                "id": trace.id,
                "round": number,
                "utility": None,
                "correctness": None,
                "note": "",
                "labelled_by": "",
                "digest": round_digest(trace, number),
            }


def round_digest(trace: LabelledTrace, number: int) -> str:
    """16 hexadecimal digits over the question and the search rounds up to ``number``, as a person
    reads them."""
    trajectory = trace.trajectory
    shown: list[Any] = [trajectory.question.text]
    for played in trajectory.search_rounds[:number]:
        passages = [(p.title, p.text) for p in played.passages]
        shown.append((played.reasoning, played.query or "", passages))
    return hashlib.sha256(json.dumps(shown, ensure_ascii=False).encode()).hexdigest()[:16]


def read_labels(path: Path, traces: Sequence[LabelledTrace]) -> HumanLabels:
    """The rows of a file, for ``traces``. Rows in which a label is null are skipped and counted.

    Raises UserError that names file, line and remedy: a missing or empty file, a line that is not
    UTF-8, broken JSON, another or a missing key, a trace or round that is not there or was labelled
    before in this file, a label that is not exactly 0 or 1, a round that is not the one that was
    exported.
    """
    if not path.is_file():
        raise UserError(f"label file {path} does not exist. Remedy: correct the path")
    known = {trace.id: trace for trace in traces}
    lines: dict[tuple[str, int], int] = {}
    labels: dict[tuple[str, int], Verdict] = {}
    names: set[str] = set()
    for line, text in text_lines(path):
        try:
            row = _checked(json.loads(text), known)
            place = (row["id"], row["round"])
            if lines.setdefault(place, line) != line:
                raise ValueError(
                    f"round {place[1]} of {place[0]!r} stands in line {lines[place]} already; "
                    "keep one of them (one file a person)"
                )
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{line}: no label ({error}). Remedy: rows like {_EXAMPLE}"
            ) from None
        verdict = _verdict(row)
        if verdict is not None:
            labels[place] = verdict
            names.add(row.get("labelled_by", ""))
    if not lines:
        raise UserError(f"{path} holds no labels. Remedy: rows like {_EXAMPLE}")
    return HumanLabels(labels, tuple(sorted(names - {""})), len(lines) - len(labels))


def merge_labels(traces: Sequence[LabelledTrace], human: HumanLabels) -> list[LabelledTrace]:
    """The traces of which a person labelled a round, with those labels alone: other rounds of them
    have none, whatever they had before. ``labelled_by`` is "human"; ``metadata.labellers`` has the
    names."""
    merged = []
    for trace in traces:
        labels = tuple(human.labels.get((trace.id, n + 1)) for n in range(len(trace.labels)))
        if all(label is None for label in labels):
            continue
        question = trace.trajectory.question
        metadata = {**question.metadata, "labellers": list(human.names)}
        trajectory = replace(trace.trajectory, question=replace(question, metadata=metadata))
        merged.append(replace(trace, trajectory=trajectory, labels=labels, labelled_by="human"))
    return merged


def _checked(row: Any, known: Mapping[str, LabelledTrace]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    missing = [key for key in _KEYS if key not in row]
    if missing:
        raise ValueError(f"the key {missing[0]!r} is missing")
    other = sorted(set(row) - {*_KEYS, *_OPTIONAL})
    if other:
        raise ValueError(f"the key {other[0]!r} is unknown")
    trace = known.get(row["id"]) if isinstance(row["id"], str) else None
    if trace is None:
        raise ValueError(f"there is no trace {row['id']!r}")
    number, rounds = row["round"], len(trace.labels)
    if type(number) is not int or not 1 <= number <= rounds:
        raise ValueError(f"round must be 1 to {rounds} for {trace.id!r}, found {number!r}")
    for key in ("utility", "correctness"):
        if row[key] is not None and (type(row[key]) is not int or row[key] not in (0, 1)):
            raise ValueError(f"{key} must be 0, 1 or null, found {row[key]!r}")
    for key in _OPTIONAL:
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"{key} must be a text, found {row[key]!r}")
    if row.get("digest") and row["digest"] != round_digest(trace, number):
        raise ValueError(
            f"round {number} of {trace.id!r} is not the one that was exported: label.traces is "
            "another file, or was made anew"
        )
    return row


def _verdict(row: Mapping[str, Any]) -> Verdict | None:
    if row["utility"] is None or row["correctness"] is None:
        return None
    return Verdict(
        utility=float(row["utility"]),
        correctness=float(row["correctness"]),
        rationale=row.get("note", ""),
    )
