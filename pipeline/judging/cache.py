"""Verdicts kept on disk: asked once, known for ever, whatever run asks.

A key holds all that a verdict depends on: the model, the prompt file, the way of asking and the
trace itself. SQLite in write-ahead mode, so that several actors of a machine share one file; a
crash leaves it whole.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    """One file of verdicts. Its methods raise UserError where the file is none of ours, is damaged
    or cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            # An actor makes it in one thread and uses it in another, never in both at once.
            self._db = sqlite3.connect(
                path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
            self._prepare()

    def get(self, key: bytes) -> list[Verdict] | None:
        """The verdicts under a key; None where there are none."""
        with self._errors():
            found = self._db.execute("select verdicts from verdicts where key = ?", (key,))
            row = found.fetchone()
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
        with self._errors():
            self._db.execute(
                "insert or ignore into verdicts (key, verdicts, judge) values (?, ?, ?)",
                (key, content, judge),
            )

    def __len__(self) -> int:
        with self._errors():
            return int(self._db.execute("select count(*) from verdicts").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _prepare(self) -> None:
        """SQLite's own waiting does not cover a change of the journal's mode, which all actors of a
        run make at once where the file is new."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                self._db.execute("pragma journal_mode = wal")
                self._db.execute("pragma synchronous = normal")
                self._db.execute(_TABLE)
                self._db.execute("select key, verdicts, judge from verdicts limit 1")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            raise UserError(
                f"judge.cache={self._path}: {error}. Remedy: a file that can be written, on a disk "
                "of this machine, or judge.cache= for none"
            ) from error
