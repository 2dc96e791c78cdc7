"""What a run has spent on judging in all its lives.

    judge_spent.json    {"tokens": 1234567, "money": 1.25}

Neither actors' totals nor a run's metrics tell: those begin anew with an actor or a life, these are
rolled back with the steps that are trained again. What was paid is paid.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from pipeline.atomic import write_json
from pipeline.errors import UserError

__all__ = ["SPENT", "Spending"]

logger = logging.getLogger(__name__)

SPENT = "judge_spent.json"  # in the run directory
_TOKENS = ("prompt_tokens", "completion_tokens")


class Spending:
    """``tokens`` (prompts and answers) and ``money``, up to now. Without a ``path`` nothing is
    kept.

    Raises UserError for a file that is damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.tokens, self.money = _read(path) if path is not None and path.exists() else (0, 0.0)
        self._counted: Mapping[str, float] = {}
        self._is_kept = True

    def count(self, totals: Mapping[str, float]) -> tuple[int, float]:
        """Add what ``totals`` of this life have grown by since the last time, and keep it. Returns
        the tokens and the money that were added."""
        before, self._counted = self._counted, dict(totals)

        def grown(name: str) -> float:
            return totals.get(name, 0.0) - before.get(name, 0.0)

        tokens, money = int(sum(map(grown, _TOKENS))), grown("money")
        if tokens or money:
            self.tokens += tokens
            self.money += money
            self._is_kept = False
        if self._path is not None and not self._is_kept:
            try:
                write_json(self._path, {"tokens": self.tokens, "money": self.money})
                self._is_kept = True
            except OSError as error:  # a checkpoint that filled the disk is removed soon
                logger.warning("%s cannot be written yet (%s)", self._path, error)
        return tokens, money


def _read(path: Path) -> tuple[int, float]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return int(row["tokens"]), float(row["money"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not say what the run has spent on judging ({error!r}). Remedy: write "
            '{"tokens": 0, "money": 0.0} with what the endpoint has billed'
        ) from None
