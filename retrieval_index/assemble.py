"""From embedding shards to index files: flat ones are written shard by shard, others by FAISS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.errors import IndexBuildError, faiss_reason
from retrieval_index.files import fsync_file, write_atomically
from retrieval_index.flat_file import write_flat
from retrieval_index.manifest import FLAT, ShardFile
from retrieval_index.vectors import ShardDirectory

__all__ = ["empty_index", "limit_faiss", "write_indexes", "write_vectors"]

_FINISHED = "finished"  # in the directory of the embeddings
_TRAINING_ROWS = 200_000
_ROWS_A_LIST = 40  # FAISS warns below 39


def empty_index(factory: str, dimension: int, count: int) -> Any:
    """An empty FAISS index; refuses a factory string that FAISS does not take.

    Raises IndexBuildError.
    """
    import faiss

    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexBuildError(
            f"factory={factory}: FAISS refuses it for {count} vectors of {dimension} dimensions "
            f"({faiss_reason(error)}); use Flat, or a string of FAISS's index factory"
        ) from None


def limit_faiss(threads: int) -> None:
    """Of this process; what k-means finds depends on it in the last bits."""
    import faiss

    faiss.omp_set_num_threads(threads)


def write_indexes(
    factory: str,
    dimension: int,
    embedded: ShardDirectory,
    files: Sequence[ShardFile],
    hashes: np.ndarray,
    directory: Path,
    advance: Callable[[int], None],
) -> None:
    """Write the index files of a corpus of these S16[n] text hashes; those that a killed build
    finished are taken.

    Raises IndexBuildError where FAISS cannot make them of so many.
    """
    kept = embedded.path / _FINISHED
    kept.mkdir(exist_ok=True)
    finished = {file: kept / f"{_key(factory, file, hashes)}.faiss" for file in files}
    for stale in set(kept.iterdir()) - set(finished.values()):
        stale.unlink()
    for file, path in finished.items():
        if path.is_file():
            advance(file.end - file.start)
        else:
            _write_index(factory, dimension, embedded, file, path, advance)
    for file, path in finished.items():
        os.replace(path, directory / file.name)


def _key(factory: str, file: ShardFile, hashes: np.ndarray) -> str:
    """What decides an index file; its encoder is that of the embeddings in the same directory."""
    import faiss

    digest = sha256(repr((factory, file.start, file.end, faiss.__version__)).encode())
    digest.update(hashes[file.start : file.end].tobytes())
    return digest.hexdigest()


def _write_index(
    factory: str,
    dimension: int,
    embedded: ShardDirectory,
    file: ShardFile,
    path: Path,
    advance: Callable[[int], None],
) -> None:
    """Write the vectors of a range of rows as an index of this kind."""
    rows = file.end - file.start
    if factory == FLAT:
        vectors = _told(embedded.between(file.start, file.end), advance)
        write_atomically(path, lambda open_file: write_flat(open_file, dimension, rows, vectors))
        return
    index = empty_index(factory, dimension, rows)
    _fill(index, factory, embedded, file, advance)
    temporary = path.with_name(f".{path.name}.tmp")
    _faiss_write(index, temporary)
    os.replace(temporary, path)


def write_vectors(embedded: ShardDirectory, path: Path, dimension: int, count: int) -> None:
    """Write all vectors as a flat index."""
    vectors = embedded.between(0, count)
    write_atomically(path, lambda file: write_flat(file, dimension, count, vectors))


def _told(vectors: Iterable[np.ndarray], advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    for block in vectors:
        yield block
        advance(len(block))


def _fill(
    index: Any,
    factory: str,
    embedded: ShardDirectory,
    file: ShardFile,
    advance: Callable[[int], None],
) -> None:
    """Train where the factory asks for it, and add the rows."""
    count = file.end - file.start
    try:
        if not index.is_trained:
            index.train(training_rows(embedded, file, training_count(index)))
        for vectors in _told(embedded.between(file.start, file.end), advance):
            index.add(np.ascontiguousarray(vectors))
    except RuntimeError as error:
        raise IndexBuildError(
            f"factory={factory}: FAISS cannot build it from {count} passages "
            f"({faiss_reason(error)}); use Flat, or fewer clusters"
        ) from None


def training_count(index: Any) -> int:
    """How many vectors this kind of index learns from, where there are so many."""
    import faiss

    try:
        lists = faiss.extract_index_ivf(index).nlist
    except RuntimeError:  # no inverted lists
        lists = 0
    return max(_TRAINING_ROWS, _ROWS_A_LIST * lists)


def training_rows(embedded: ShardDirectory, file: ShardFile, most: int) -> np.ndarray:
    """float32[n, d]: evenly spaced vectors of a range of rows, ``most`` at most."""
    count = file.end - file.start
    step = max(1, -(-count // most))
    taken = seen = 0
    for vectors in embedded.between(file.start, file.end):
        if not seen:
            sample = np.empty((-(-count // step), vectors.shape[1]), dtype=np.float32)
        wanted = vectors[-seen % step :: step]
        sample[taken : taken + len(wanted)] = wanted
        taken, seen = taken + len(wanted), seen + len(vectors)
    return sample


def _faiss_write(index: Any, path: Path) -> None:
    """Write an index that FAISS holds, to the disk itself."""
    import faiss

    faiss.write_index(index, str(path))
    fsync_file(path)
