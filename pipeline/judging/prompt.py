"""The judge's prompt: a versioned file, and the trace of a trajectory as data inside it.

A trace is JSON lines: the question, then a line a search round. It stands between two lines that
hold an unguessable mark, so that no text in it can pretend to be its end; the text in it cannot
leave its JSON string either. The rounds of one trajectory share everything before their own line,
and trajectories of one question what they have in common at the beginning, which is what an
engine's prefix cache needs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.judging.untrusted import plain_text
from pipeline.types import Round, Trajectory

__all__ = ["JudgePrompt", "Message", "new_secret", "read_prompt"]

Message = dict[str, str]  # role, content
_DIRECTORY = Path(__file__).parent / "prompts"
_PLACEHOLDER = re.compile(r"\{(trace|mark|round|rounds)\}")
_LIMITS = ("question_chars", "reasoning_chars", "query_chars", "passage_chars", "rationale_chars")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompt:
    """One prompt file. ``each`` asks for round ``{round}``, ``together`` for all ``{rounds}``;
    both hold ``{trace}`` between two ``{mark}``. The limits are in characters a text."""

    version: str
    system: str
    each: str
    together: str
    question_chars: int = 2000
    reasoning_chars: int = 2000
    query_chars: int = 500
    passage_chars: int = 1500
    rationale_chars: int = 400
    mark_bytes: int = 8

    def ask_round(self, trajectory: Trajectory, number: int, secret: bytes) -> list[Message]:
        """Ask for search round ``number`` (from 1), of which nothing later is shown."""
        return self._ask(self.each, trajectory, number, secret)

    def ask_all(self, trajectory: Trajectory, secret: bytes) -> list[Message]:
        """Ask for all search rounds in one answer."""
        return self._ask(self.together, trajectory, len(trajectory.search_rounds), secret)

    def trace(self, trajectory: Trajectory, rounds: int) -> str:
        """JSON lines: the question and the first ``rounds`` search rounds, in plain text."""
        question = {"question": plain_text(trajectory.question.text, self.question_chars)}
        shown = trajectory.search_rounds[:rounds]
        lines = [question, *(self._round(n, r) for n, r in enumerate(shown, start=1))]
        return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)

    def fingerprint(self) -> str:
        """SHA-256 of all that the file says: the key of caches, with the version for people."""
        content = json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _round(self, number: int, search_round: Round) -> dict[str, Any]:
        return {
            "round": number,
            "reasoning": plain_text(search_round.reasoning, self.reasoning_chars),
            "query": plain_text(search_round.query or "", self.query_chars),
            "passages": [
                {
                    "title": plain_text(p.title, self.query_chars),
                    "text": plain_text(p.text, self.passage_chars),
                }
                for p in search_round.passages
            ],
        }

    def _ask(
        self, template: str, trajectory: Trajectory, number: int, secret: bytes
    ) -> list[Message]:
        values = {
            "trace": self.trace(trajectory, number),
            "mark": self._mark(trajectory, secret),
            "round": str(number),
            "rounds": str(len(trajectory.search_rounds)),
        }
        user = _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user}]

    def _mark(self, trajectory: Trajectory, secret: bytes) -> str:
        """The same for all trajectories of a question, unguessable without ``secret``."""
        question = self.trace(trajectory, 0)
        return hmac.new(secret, question.encode(), "sha256").hexdigest()[: 2 * self.mark_bytes]


def read_prompt(name: str) -> JudgePrompt:
    """A prompt of ours by name, or a YAML file of yours by path.

    Raises UserError for a file that is not there, an unknown or missing key, a value of another
    kind, a template without its placeholders.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _DIRECTORY / f"{name}.yaml"
    if not path.is_file():
        ours = ", ".join(sorted(p.stem for p in _DIRECTORY.glob("*.yaml")))
        raise UserError(f"judge.prompt={name}: there is no {path}; give a file, or one of {ours}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        prompt = JudgePrompt(**content)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, TypeError) as error:
        keys = ", ".join(f.name for f in fields(JudgePrompt))
        raise UserError(f"judge prompt {path}: {error}; its keys are {keys}") from None
    _check(prompt, path)
    return prompt


def _check(prompt: JudgePrompt, path: Path) -> None:
    for key in ("version", "system", "each", "together"):
        if not isinstance(getattr(prompt, key), str):
            raise UserError(f"judge prompt {path}: {key!r} must be a text; put it in quotes")
    for key, least, most in (*((key, 1, 10**6) for key in _LIMITS), ("mark_bytes", 4, 32)):
        value = getattr(prompt, key)
        if type(value) is not int or not least <= value <= most:
            raise UserError(f"judge prompt {path}: {key!r} must be a number from {least} to {most}")
    _check_template(prompt.each, "each", "round", path)
    _check_template(prompt.together, "together", "rounds", path)


def _check_template(template: str, key: str, number: str, path: Path) -> None:
    found: Sequence[str] = _PLACEHOLDER.findall(template)
    before, _, after = template.partition("{trace}")
    if (
        found.count("trace") != 1
        or number not in found
        or "{mark}" not in before
        or "{mark}" not in after
    ):
        raise UserError(
            f"judge prompt {path}: {key!r} needs {{trace}} once, a {{mark}} before it and one "
            f"after it, and {{{number}}}"
        )


def new_secret() -> bytes:
    """Of one process: nothing outside can know the marks made with it."""
    return secrets.token_bytes(32)
