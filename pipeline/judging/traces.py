"""Labelled traces: trajectories with a label a search round, as JSON lines.

    {"id": "dev-1/0", "question": "...", "golden_answers": ["..."], "metadata": {...},
     "rounds": [{"reasoning": "...", "query": "...", "passages": [{"id", "title", "text"}, ...],
                 "label": {"utility": 1, "correctness": 0, "rationale": "..."}}, ...],
     "answer": "...", "labelled_by": "evidence"}

``rounds`` are the search rounds; a label is ``null`` where nobody gave one. Judges are trained on
such files, audited with them, and people label them.
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

__all__ = ["LabelledTrace", "make_trajectory", "read_traces", "write_traces"]

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


def read_traces(path: Path) -> list[LabelledTrace]:
    """All traces of a file. Raises UserError that names file, line and remedy."""
    if not path.is_file():
        raise UserError(f"trace file {path} does not exist. Remedy: correct the path")
    traces = list(_read(path))
    if not traces:
        raise UserError(f"{path} holds no traces. Remedy: add rows like {_EXAMPLE}")
    return traces


def _read(path: Path) -> Iterator[LabelledTrace]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _trace(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _trace(row: Mapping[str, Any]) -> LabelledTrace:
    metadata = dict(row.get("metadata") or {})
    evidence = metadata.get("evidence")
    identifier = str(row["id"])
    question = Question(
        id=identifier.rpartition("/")[0] or identifier,
        text=str(row["question"]),
        answers=tuple(map(str, row.get("golden_answers") or ("",))),
        evidence=None if evidence is None else tuple(map(str, evidence)),
        metadata=metadata,
    )
    rounds = row["rounds"]
    if not isinstance(rounds, list):
        raise TypeError("rounds must be a list")
    suffix = identifier.rpartition("/")[2]
    return LabelledTrace(
        id=identifier,
        trajectory=make_trajectory(
            question,
            [
                (str(r["reasoning"]), str(r["query"]), [_passage(p) for p in r["passages"]])
                for r in rounds
            ],
            row.get("answer"),
            number=int(suffix) if suffix.isdecimal() else 0,
        ),
        labels=tuple(_label(r.get("label")) for r in rounds),
        labelled_by=str(row.get("labelled_by") or "unknown"),
    )


def _passage(row: Mapping[str, Any]) -> Passage:
    return Passage(
        doc_id=str(row.get("id", "")), title=str(row.get("title", "")), text=str(row["text"])
    )


def _label(row: Mapping[str, Any] | None) -> Verdict | None:
    if row is None:
        return None
    return Verdict(
        utility=float(row["utility"]),
        correctness=float(row["correctness"]),
        rationale=str(row.get("rationale", "")),
    )
