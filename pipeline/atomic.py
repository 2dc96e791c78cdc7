"""Files that are either whole or absent: written aside, synced, renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.errors import GleanerError

__all__ = [
    "needed",
    "sha256_of",
    "sync_directory",
    "sync_tree",
    "write_bytes",
    "write_json",
    "write_lines",
    "write_text",
    "writing",
]


@contextmanager
def needed(what: str, path: Path, remedy: str = "make room, and resume") -> Iterator[None]:
    """Without ``path``, which the block writes, a run cannot go on: a full or broken disk ends it
    with a message, by GleanerError."""
    try:
        yield
    except OSError as error:
        raise GleanerError(f"{what} {path} cannot be written ({error}): {remedy}") from None


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place, synced, once the block is done without an error;
    else nothing of it stays. Missing directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in ``directory`` on disk, too."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """Have every file below ``directory``, and all names, on disk."""
    for path in [*directory.rglob("*"), directory]:
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` at once."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """UTF-8, replacing ``path`` at once."""
    write_bytes(path, text.encode())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """UTF-8 lines, each ended by a newline, replacing ``path`` at once."""
    with writing(path) as file:
        for line in lines:
            file.write(line.encode() + b"\n")


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with sorted keys, replacing ``path`` at once."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
