"""Question files: reads FlashRAG and Search-R1 JSONL and Parquet, writes FlashRAG JSONL.

FlashRAG rows hold ``id``, ``question``, ``golden_answers`` and optional ``metadata``.
Search-R1's processed rows hold ``data_source``, ``prompt`` (a chat list) and
``reward_model.ground_truth.target``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import write_lines
from pipeline.errors import UserError
from pipeline.types import Question

__all__ = ["read_questions", "write_questions"]

_EXAMPLE = '{"id": "1", "question": "Who ...?", "golden_answers": ["..."]}'


def read_questions(path: Path | str) -> list[Question]:
    """All questions of a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file, in file order.

    Raises UserError that names file, line (Parquet: row) and remedy: missing or empty file,
    broken JSON, a missing key, a value of the wrong type, no answers, a duplicate id.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"question file {path} does not exist. Remedy: correct the path, or make the default "
            f"task with `python -m pipeline prepare`"
        )
    questions: list[Question] = []
    first_place: dict[str, str] = {}
    for place, row in _rows(path):
        question = _question(row, place, fallback_id=str(len(questions)), source=_stem(path))
        if question.id in first_place:
            raise UserError(
                f"{place}: id {question.id!r} was already used at {first_place[question.id]}. "
                f"Remedy: give every question its own id"
            )
        first_place[question.id] = place
        questions.append(question)
    if not questions:
        raise UserError(f"{path} holds no questions. Remedy: add rows like {_EXAMPLE}")
    return questions


def write_questions(path: Path | str, questions: Iterable[Question]) -> None:
    """Write FlashRAG JSONL, atomically."""
    write_lines(Path(path), (_json_line(question) for question in questions))


def _json_line(question: Question) -> str:
    metadata = dict(question.metadata)
    if question.evidence is not None:
        metadata["evidence"] = list(question.evidence)
    if question.forbidden:
        metadata["forbidden"] = sorted(question.forbidden)
    row: dict[str, Any] = {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.answers),
    }
    if metadata:
        row["metadata"] = metadata
    return json.dumps(row, ensure_ascii=False)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path}:{number}"
                    yield place, _parse(line, place)
        except (gzip.BadGzipFile, EOFError) as error:
            raise UserError(
                f"{path}:{number + 1}: not a whole gzip file ({error}). Remedy: download it again"
            ) from error


def _parse(line: bytes, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{place}: not valid JSON ({error}). Remedy: one object a line, like {_EXAMPLE}"
        ) from error
    if not isinstance(row, dict):
        raise UserError(
            f"{place}: expected an object, found {_kind(row)}. Remedy: one object a line, "
            f"like {_EXAMPLE}"
        )
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"reading {path} needs pyarrow. Remedy: pip install pyarrow, or convert it to JSONL"
        ) from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({error}). Remedy: download it again"
        ) from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path} row {number}", row


def _question(row: Mapping[str, Any], place: str, fallback_id: str, source: str) -> Question:
    metadata = _metadata(row, place)
    return Question(
        id=_identifier(row, place, fallback_id),
        text=_text(row, place),
        answers=_answers(row, place),
        source=str(row.get("data_source") or source),
        evidence=_passage_ids(metadata, "evidence", place) or None,  # none named: nobody knows
        forbidden=frozenset(_passage_ids(metadata, "forbidden", place) or ()),
        metadata=metadata,
    )


def _identifier(row: Mapping[str, Any], place: str, fallback: str) -> str:
    value = row.get("id")
    if value is None and "prompt" in row:
        extra = row.get("extra_info") or {}
        return f"{extra.get('split', 'row')}_{extra.get('index', fallback)}"
    if value is None:
        raise _missing("id", place)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _wrong("id", "a string", value, place)
    return str(value)


def _text(row: Mapping[str, Any], place: str) -> str:
    value = row.get("question")
    if value is None and "prompt" in row:
        value = _prompt_question(row["prompt"], place)
    if value is None:
        raise _missing("question", place)
    if not isinstance(value, str):
        raise _wrong("question", "a string", value, place)
    if not value.strip():
        raise UserError(f"{place}: the question is empty. Remedy: write it, or delete the line")
    return value.strip()


def _prompt_question(prompt: Any, place: str) -> str:
    """The question inside a Search-R1 prompt: what follows its last ``Question:``, if any."""
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) for turn in prompt):
        raise _wrong("prompt", 'a chat list [{"role": ..., "content": ...}]', prompt, place)
    contents = [turn.get("content") for turn in prompt if turn.get("role") == "user"]
    if not contents or not isinstance(contents[-1], str):
        raise UserError(f"{place}: prompt has no user message. Remedy: add one, or a question key")
    return contents[-1].rsplit("Question:", 1)[-1]


def _answers(row: Mapping[str, Any], place: str) -> tuple[str, ...]:
    name, value = "golden_answers", row.get("golden_answers")
    if value is None and "reward_model" in row:
        name = "reward_model.ground_truth.target"
        truth = (row["reward_model"] or {}).get("ground_truth")
        value = truth.get("target") if isinstance(truth, dict) else truth
        value = [value] if isinstance(value, str) else value
    if value is None:
        raise _missing(name, place)
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise _wrong(name, "a list of strings", value, place)
    answers = tuple(dict.fromkeys(answer for answer in value if answer.strip()))
    if not answers:
        raise UserError(
            f"{place}: {name} has no answer. Remedy: give at least one, or delete the line"
        )
    return answers


def _metadata(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    value = row.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong("metadata", "an object", value, place)
    return value


def _passage_ids(metadata: Mapping[str, Any], key: str, place: str) -> tuple[str, ...] | None:
    """Passage ids under a key. HotpotQA's ``supporting_facts`` are titles, which say nothing of
    passages."""
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise _wrong(f"metadata.{key}", "a list of passage ids", value, place)
    return tuple(dict.fromkeys(str(item) for item in value))


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
    return names.get(type(value), "nothing" if value is None else f"{value!r}")


def _missing(key: str, place: str) -> UserError:
    return UserError(f"{place}: the key {key!r} is missing. Remedy: write rows like {_EXAMPLE}")


def _wrong(key: str, wanted: str, value: Any, place: str) -> UserError:
    return UserError(
        f"{place}: {key!r} must be {wanted}, found {_kind(value)}. "
        f"Remedy: write rows like {_EXAMPLE}"
    )
