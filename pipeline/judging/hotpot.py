"""Question sets with supporting facts, in HotpotQA's own JSON (2WikiMultihopQA's is the same):

    [{"_id": "1", "question": "...", "answer": "...",
      "supporting_facts": [["TITLE", 0], ...],
      "context": [["TITLE", ["A sentence.", "..."]], ...]}, ...]

The paragraphs whose titles ``supporting_facts`` names are needed for the answer, the others of
``context`` are distractors. ``pipeline/judging/scripted.py`` makes labelled traces from them. A
directory stands for the ``questions.json`` in it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.judging.scripted import Material, NamePool, scripted_trace
from pipeline.judging.traces import LabelledTrace
from pipeline.types import Passage, Question

__all__ = ["hotpot_traces", "read_hotpot"]

_IN_A_DIRECTORY = "questions.json"
_EXAMPLE = (
    '[{"_id": "1", "question": "Who ...?", "answer": "...", "supporting_facts": [["TITLE", 0]], '
    '"context": [["TITLE", ["A sentence."]]]}]'
)


def hotpot_traces(
    path: Path, *, seed: int = 0, limit: int = 0, per_question: int = 2
) -> list[LabelledTrace]:
    """``per_question`` search traces by script of each question of a file (of the first ``limit``;
    0: all), with labels that follow from its supporting facts: see ``scripted_trace`` for what
    such labels are and are not. The traces of a question depend on it, the titles of the
    whole file and ``seed``, never on ``limit``.

    Raises what `read_hotpot` raises.
    """
    materials = read_hotpot(path)
    names = NamePool(materials)  # of all of them: the limit changes no trace
    return [
        scripted_trace(
            material, names, random.Random(f"{seed} {material.question.id} {n}"), number=n
        )
        for material in materials[: limit or None]
        for n in range(per_question)
    ]


def read_hotpot(path: Path) -> list[Material]:
    """The questions of a file, or of the one in a directory, with their paragraphs, each whole: its
    sentences, joined by spaces.

    Raises UserError that names file, entry (from 1) and remedy: a file that is missing or no such
    list, a missing key, a value of the wrong type, an empty question or answer, a supporting title
    that is not in the context, an id that was used before.
    """
    if path.is_dir():
        path = path / _IN_A_DIRECTORY
    if not path.is_file():
        raise UserError(
            f"question file {path} does not exist. Remedy: a file, or a directory with a "
            f"{_IN_A_DIRECTORY}"
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}). Remedy: a file like {_EXAMPLE}") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a list of questions. Remedy: a file like {_EXAMPLE}")
    materials: list[Material] = []
    places: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            material = _material(entry, str(number), path.stem)
            first = places.setdefault(material.question.id, number)
            if first != number:
                raise ValueError(f"its id {material.question.id!r} is that of entry {first}")
        except ValueError as error:
            raise UserError(
                f"{path}: entry {number} is no question with supporting facts ({error}). "
                f"Remedy: entries like {_EXAMPLE}"
            ) from None
        materials.append(material)
    return materials


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry, every value of the type it should have."""

    values: Mapping[str, Any]

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key} must be a text that is not empty")
        return value

    def pairs(self, key: str, second: type) -> list[tuple[str, Any]]:
        value = self._get(key)
        if not isinstance(value, list) or not value:
            raise ValueError(f"{key} must be a list that is not empty")
        for pair in value:
            fits = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
            if not fits or not isinstance(pair[1], second):
                kind = "sentences" if second is list else "sentence index"
                raise ValueError(f"{key} must hold pairs [title, {kind}], found {str(pair)[:60]}")
        return [(title, rest) for title, rest in value]

    def _get(self, key: str) -> Any:
        if key not in self.values:
            raise ValueError(f"the key {key!r} is missing")
        return self.values[key]


def _material(row: Any, fallback_id: str, source: str) -> Material:
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    entry = _Entry(row)
    identifier = str(row.get("_id") or row.get("id") or fallback_id)
    paragraphs = _paragraphs(entry)
    titles = list(dict.fromkeys(title for title, _ in entry.pairs("supporting_facts", int)))
    missing = [title for title in titles if title not in paragraphs]
    if missing:
        raise ValueError(f"the supporting title {missing[0]!r} is not in its context")
    question = Question(
        id=identifier,
        text=entry.text("question"),
        answers=(entry.text("answer"),),
        source=source,
        evidence=tuple(titles),
        metadata={"hops": len(titles)},
    )
    return Material(
        question=question,
        supporting=tuple(paragraphs[title] for title in titles),
        distractors=tuple(p for title, p in paragraphs.items() if title not in titles),
    )


def _paragraphs(entry: _Entry) -> dict[str, Passage]:
    """By title, which is also the id; paragraphs of one title are one."""
    texts: dict[str, str] = {}
    for title, sentences in entry.pairs("context", list):
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise ValueError(f"the sentences of {title!r} in context must be texts")
        text = " ".join(sentence.strip() for sentence in sentences if sentence.strip())
        texts[title] = f"{texts[title]} {text}" if title in texts else text
    return {title: Passage(doc_id=title, title=title, text=text) for title, text in texts.items()}
