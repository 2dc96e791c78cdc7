"""Questions with their plans: what an episode is scripted from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.types import Passage, Question

__all__ = ["Hop", "PlannedQuestion", "label", "read_corpus", "read_planned_questions"]

_LABELS = {
    "city_country": "country",
    "place_country": "country",
    "city_population": "city population",
    "city_timezone": "time zone",
    "work_year": "year",
}


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a plan: ``query`` asks for ``relation`` of ``subject``; the passage
    ``evidence`` says that it is ``answer``."""

    relation: str
    subject: str
    answer: str
    evidence: str
    query: str


@dataclass(frozen=True, slots=True)
class PlannedQuestion:
    """A question and the hops that answer it, in order."""

    question: Question
    hops: tuple[Hop, ...]

    @property
    def answer(self) -> str:
        """What a good episode answers."""
        return self.hops[-1].answer

    @property
    def goal(self) -> str:
        """The relation asked for in the end."""
        return self.hops[-1].relation


def label(relation: str) -> str:
    """How reasoning names a relation.

    >>> label("highest_point"), label("city_country")
    ('highest point', 'country')
    """
    return _LABELS.get(relation, relation.replace("_", " "))


def read_planned_questions(path: Path) -> list[PlannedQuestion]:
    """Questions of a JSONL file whose ``metadata.plan`` says how to answer them.

    Raises:
        UserError: for a missing file, or a line that is malformed or has no plan.
    """
    return [_planned(row, where) for row, where in _rows(path)]


def read_corpus(path: Path) -> dict[str, Passage]:
    """Passages of a corpus file by id, in file order. Raises UserError as above."""
    passages = {}
    for row, where in _rows(path):
        try:
            title, _, text = str(row["contents"]).partition("\n")
            doc_id = str(row["id"])
        except KeyError as error:
            raise UserError(f"{where}: no key {error}; expected id and contents") from error
        passages[doc_id] = Passage(doc_id=doc_id, title=title.strip().strip('"'), text=text.strip())
    return passages


def _rows(path: Path) -> list[tuple[Mapping[str, Any], str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; make it with `python -m pipeline prepare`"
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object")
        rows.append((row, f"{path}:{number}"))
    return rows


def _planned(row: Mapping[str, Any], where: str) -> PlannedQuestion:
    try:
        metadata = row["metadata"]
        hops = tuple(
            Hop(
                relation=str(hop["relation"]),
                subject=str(hop["subject"]),
                answer=str(hop["answer"]),
                evidence=str(hop["evidence"]),
                query=str(hop["query"]),
            )
            for hop in metadata["plan"]
        )
        question = Question(
            id=str(row["id"]),
            text=str(row["question"]),
            answers=tuple(map(str, row["golden_answers"])),
            evidence=tuple(hop.evidence for hop in hops),
            metadata=dict(metadata),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: no scripted episode can be made of it ({error!r}); the warm start needs "
            "question, golden_answers and metadata.plan with relation, subject, answer, evidence "
            "and query"
        ) from error
    if not hops:
        raise UserError(f"{where}: metadata.plan is empty")
    return PlannedQuestion(question=question, hops=hops)
