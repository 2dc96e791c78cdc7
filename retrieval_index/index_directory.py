"""The directory of an index while it is made: written beside the old one, locked, swapped in whole.

Everything goes to ``<index>.partial``; the index directory itself is only ever replaced whole, when
its manifest has been written.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retrieval_index.corpus import CorpusScan, is_plain, write_plain_text
from retrieval_index.errors import IndexBuildError
from retrieval_index.files import fsync_directory, write_atomically
from retrieval_index.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    OFFSETS_FILE,
    PASSAGES_FILE,
    TEXT_HASHES_FILE,
)

__all__ = [
    "SHARDS",
    "check_target",
    "finish_swap",
    "library_versions",
    "new_index_directory",
    "write_row_files",
]

SHARDS = "shards"  # embeddings and finished index files of a build that goes on
_RECORDED_VERSIONS = ("faiss-cpu", "faiss-gpu", "sentence-transformers", "torch", "transformers")


def check_target(index: Path, *needed: Path) -> None:
    """Raises IndexBuildError where ``index`` is anything but an index or a place for one, and where
    a file that is ``needed`` lies in it: the new index takes the place of the whole directory."""
    if index.exists() and not index.is_dir():
        raise IndexBuildError(f"{index}: is a file; give a directory for the index")
    if index.is_dir() and any(index.iterdir()) and not _is_index(index):
        raise IndexBuildError(
            f"{index}: holds files that are not an index, and a build would replace them; "
            "give a new or empty directory"
        )
    for file in needed:
        for directory in (index, _work_of(index)):
            if file.resolve().is_relative_to(directory.resolve()):
                raise IndexBuildError(
                    f"{file}: lies in {directory}, which a new index replaces; move it, or give "
                    "another directory for the index"
                )


def _is_index(directory: Path) -> bool:
    has_vectors = any(directory.glob(f"{Path(INDEX_FILE).stem}*{Path(INDEX_FILE).suffix}"))
    return (directory / MANIFEST_FILE).is_file() and has_vectors


def _work_of(index: Path) -> Path:
    return index.with_name(index.name + ".partial")


@contextlib.contextmanager
def new_index_directory(index: Path) -> Iterator[Path]:
    """Where to write a new index; it takes the place of ``index`` when the block ends.

    Held by one process at a time. Of an earlier attempt only its embeddings are still there. Where
    the block raises, ``index`` stays as it was, and embeddings are kept for the next time. Raises
    IndexBuildError where nothing can be written, and where another process is at it.
    """
    work = _work_of(index)
    with _exclusive(work, index):
        try:
            _clear(work)
            yield work
        except BaseException:
            _clear(work)
            if not (work / SHARDS).is_dir():
                shutil.rmtree(work, ignore_errors=True)
            raise
        _swap(work, index)


def _clear(work: Path) -> None:
    """Remove all but embeddings and finished index files, and of those what was not written to its
    end."""
    for path in work.iterdir():
        if path.name == SHARDS:
            for unfinished in path.rglob(".*.tmp"):
                unfinished.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
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
        return corpus
    write_atomically(work / PASSAGES_FILE, lambda file: write_plain_text(corpus, file))
    return work / PASSAGES_FILE


def _swap(work: Path, index: Path) -> None:
    """Put the finished directory in the place of the old one."""
    fsync_directory(work)
    old = _old_of(index)
    shutil.rmtree(old, ignore_errors=True)
    if index.exists():
        os.replace(index, old)
    os.replace(work, index)
    fsync_directory(index.parent)
    _remove_leftovers(index)  # last: until now a rebuild could use them


def _old_of(index: Path) -> Path:
    return index.with_name(index.name + ".old")


def _remove_leftovers(index: Path) -> None:
    for directory in (_old_of(index), index / SHARDS):
        shutil.rmtree(directory, ignore_errors=True)


def finish_swap(index: Path) -> None:
    """Remove what a build left that was killed when its index was in place already; nothing where
    another process is at it."""
    if not (_old_of(index).exists() or (index / SHARDS).exists()):
        return
    work = _work_of(index)
    with contextlib.suppress(IndexBuildError), _exclusive(work, index):
        _remove_leftovers(index)
        with contextlib.suppress(OSError):  # it holds embeddings of a build that goes on
            work.rmdir()


def library_versions() -> dict[str, str]:
    """Of what decides vectors and files."""
    found: dict[str, str] = {}
    for name in _RECORDED_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
