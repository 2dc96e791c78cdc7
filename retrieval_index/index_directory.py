"""The directory of an index while it is made: written beside the old one, locked, swapped in whole.

Everything goes to ``<index>.partial``; the index directory itself is only ever replaced whole, when
its manifest has been written.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from retrieval_index.corpus import CorpusScan, is_plain, write_plain_text
from retrieval_index.errors import IndexBuildError
from retrieval_index.files import fsync_directory, write_atomically
from retrieval_index.manifest import (
    MANIFEST_FILE,
    OFFSETS_FILE,
    PASSAGES_FILE,
    TEXT_HASHES_FILE,
)

__all__ = ["SHARDS", "check_target", "library_versions", "new_index_directory", "write_row_files"]

SHARDS = "shards"  # embeddings of a build that goes on
_RECORDED_VERSIONS = ("faiss-cpu", "faiss-gpu", "sentence-transformers", "torch", "transformers")


def check_target(index: Path) -> None:
    """Raises IndexBuildError where ``index`` is anything but an index or a place for one."""
    if index.exists() and not index.is_dir():
        raise IndexBuildError(f"{index}: is a file; give a directory for the index")
    if index.is_dir() and any(index.iterdir()) and not (index / MANIFEST_FILE).is_file():
        raise IndexBuildError(
            f"{index}: holds files that are not an index, and a build would replace them; "
            "give a new or empty directory"
        )


@contextmanager
def new_index_directory(index: Path, *, keep: bool = True) -> Iterator[Path]:
    """Where to write a new index; it takes the place of ``index`` when the block ends.

    Held by one process at a time. Where the block raises, ``index`` stays as it was, and what was
    written is kept for the next time, or removed (``keep``). Raises IndexBuildError where nothing
    can be written, and where another process is at it.
    """
    work = index.with_name(index.name + ".partial")
    with _exclusive(work, index):
        try:
            yield work
        except BaseException:
            if not keep:
                shutil.rmtree(work, ignore_errors=True)
            raise
        _swap(work, index)


@contextmanager
def _exclusive(work: Path, index: Path) -> Iterator[None]:
    """Make ``work`` and hold its lock, which dies with the process that holds it."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise IndexBuildError(
            f"{index}: cannot write there ({error.strerror}); give a writable directory"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise IndexBuildError(
            f"{index}: another build is writing it; wait for that one, or end it"
        ) from None
    except OSError as error:
        raise IndexBuildError(
            f"{index}: cannot be written ({error}); finished embeddings are kept in {work}: the "
            "same command goes on from them"
        ) from error
    finally:
        os.close(descriptor)


def write_row_files(corpus: Path, scan: CorpusScan, work: Path) -> Path:
    """Write offsets and hashes (and the text, where the corpus is not plain); returns the plain
    corpus."""
    write_atomically(work / OFFSETS_FILE, lambda file: np.save(file, scan.offsets))
    write_atomically(work / TEXT_HASHES_FILE, lambda file: np.save(file, scan.text_hashes))
    if is_plain(corpus):
        (work / PASSAGES_FILE).unlink(missing_ok=True)  # of an earlier corpus that was not plain
        return corpus
    write_atomically(work / PASSAGES_FILE, lambda file: write_plain_text(corpus, file))
    return work / PASSAGES_FILE


def _swap(work: Path, index: Path) -> None:
    """Put the finished directory in the place of the old one."""
    fsync_directory(work)
    old = index.with_name(index.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if index.exists():
        os.replace(index, old)
    os.replace(work, index)
    fsync_directory(index.parent)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(index / SHARDS, ignore_errors=True)  # last: until now a rebuild could use them


def library_versions() -> dict[str, str]:
    """Of what decides vectors and files."""
    found: dict[str, str] = {}
    for name in _RECORDED_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
