"""The form of a verdict: the JSON schema that a model is held to, and the parser that believes
nothing else.

A round's verdict is ``{"rationale": str, "utility": 0 or 1, "correctness": 0 or 1}``; those of a
whole trajectory are ``{"rounds": [...]}``, one a search round, in order.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.types import Verdict

__all__ = ["VerdictError", "parse_verdicts", "verdict_schema", "write_verdicts"]

_KEYS = ("rationale", "utility", "correctness")


class VerdictError(ValueError):
    """A judge's answer is no verdict. The message says why."""


def verdict_schema(rounds: int | None, rationale_chars: int) -> dict[str, Any]:
    """JSON schema of one round's verdict (``rounds=None``), or of that many in a list."""
    one = {
        "type": "object",
        "properties": {
            "rationale": {"type": "string", "maxLength": rationale_chars},
            "utility": {"type": "integer", "enum": [0, 1]},
            "correctness": {"type": "integer", "enum": [0, 1]},
        },
        "required": list(_KEYS),
        "additionalProperties": False,
    }
    if rounds is None:
        return one
    return {
        "type": "object",
        "properties": {
            "rounds": {"type": "array", "items": one, "minItems": rounds, "maxItems": rounds}
        },
        "required": ["rounds"],
        "additionalProperties": False,
    }


def write_verdicts(verdicts: list[Verdict], *, together: bool) -> str:
    """The text a judge should answer, without blanks between its parts (as engines of ours make
    it); the inverse of ``parse_verdicts``."""
    rows = [
        {"rationale": v.rationale, "utility": int(v.utility), "correctness": int(v.correctness)}
        for v in verdicts
    ]
    answer = {"rounds": rows} if together else rows[0]
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"))


def parse_verdicts(text: str, rounds: int | None, rationale_chars: int) -> list[Verdict]:
    """The verdicts in a judge's answer, which is the JSON of `verdict_schema` and nothing else.

    Raises VerdictError for text around it, another key, a key twice, a missing key, a number that
    is not exactly 0 or 1, another number of rounds. Control characters in a rationale pass: those
    who hold a model to a schema (xgrammar) let it write them.
    """
    try:
        answer = json.loads(
            text, strict=False, object_pairs_hook=_no_key_twice, parse_constant=_no_constant
        )
    except VerdictError:
        raise
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise VerdictError(f"not JSON: {error}") from None
    if rounds is None:
        return [_verdict(answer, rationale_chars)]
    if not isinstance(answer, dict) or set(answer) != {"rounds"}:
        raise VerdictError('expected an object with the key "rounds" alone')
    rows = answer["rounds"]
    if not isinstance(rows, list) or len(rows) != rounds:
        raise VerdictError(f'"rounds" must be a list of {rounds} verdicts')
    return [_verdict(row, rationale_chars) for row in rows]


def _verdict(row: Any, rationale_chars: int) -> Verdict:
    if not isinstance(row, dict) or set(row) != set(_KEYS):
        raise VerdictError(f"expected an object with the keys {', '.join(_KEYS)} alone")
    rationale = row["rationale"]
    if not isinstance(rationale, str):
        raise VerdictError("rationale must be a string")
    return Verdict(
        utility=_signal(row, "utility"),
        correctness=_signal(row, "correctness"),
        # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark.
        rationale=rationale[:rationale_chars].encode(errors="replace").decode(),
    )


def _signal(row: dict[str, Any], key: str) -> float:
    value = row[key]
    if type(value) is not int or value not in (0, 1):
        shown = type(value).__name__ if isinstance(value, dict | list) else f"{value!r:.40}"
        raise VerdictError(f"{key} must be the number 0 or 1, found {shown}")
    return float(value)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise VerdictError("a key stands there twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise VerdictError(f"{name} is no number of a verdict")
