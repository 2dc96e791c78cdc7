"""Verdicts kept on disk: asked once, known for ever, whatever run asks.

A key holds all that a verdict depends on: the model, the prompt file, the way of asking and the
trace itself. SQLite in write-ahead mode, so that several actors of a machine share one file; a
crash leaves it whole.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.types import Verdict

__all__ = ["VerdictCache", "cache_key"]

_TABLE = """
create table if not exists verdicts (
    key blob primary key,
    verdicts text not null,
    judge text not null,
    at timestamp not null default current_timestamp
) without rowid
"""
_WAIT_S = 30.0  # for another actor's write


def cache_key(*parts: Any) -> bytes:
    """SHA-256 over the parts (JSON values), which cannot run into each other."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).digest()


class VerdictCache:
    """One file of verdicts. Raises UserError where the file is none of ours or cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"judge.cache={path}: {error}. Remedy: a file that can be written, on a disk of this "
                "machine, or judge.cache= for none"
            ) from error

    def get(self, key: bytes) -> list[Verdict] | None:
        """The verdicts under a key; None where there are none."""
        row = self._db.execute("select verdicts from verdicts where key = ?", (key,)).fetchone()
        if row is None:
            return None
        return [
            Verdict(utility=u, correctness=v, rationale=why) for u, v, why in json.loads(row[0])
        ]

    def put(self, key: bytes, verdicts: Sequence[Verdict], judge: str) -> None:
        """Keep them; what is there already stays. ``judge`` is for people who read the file."""
        content = json.dumps(
            [(v.utility, v.correctness, v.rationale) for v in verdicts], ensure_ascii=False
        )
        self._db.execute(
            "insert or ignore into verdicts (key, verdicts, judge) values (?, ?, ?)",
            (key, content, judge),
        )

    def __len__(self) -> int:
        return int(self._db.execute("select count(*) from verdicts").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
