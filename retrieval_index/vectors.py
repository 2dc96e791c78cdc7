"""Vectors of texts that were embedded before, found by the hash of the text.

Two sources: a finished flat index, whose vectors FAISS gives back exactly, and the shards that
a killed build left. Both are only used where encoder and passage prefix are the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_index.errors import IndexMismatchError
from retrieval_index.files import write_atomically
from retrieval_index.flat_file import read_flat
from retrieval_index.manifest import (
    FLAT,
    TEXT_HASHES_FILE,
    VECTORS_FILE,
    Manifest,
)

__all__ = [
    "SHARD_ROWS",
    "EmbeddingKey",
    "KnownVectors",
    "ShardDirectory",
    "VectorSource",
    "stored_vectors",
    "vectors_of_index",
]

SHARD_ROWS = 1024  # passages a shard: at most that much work is lost by a kill, for each worker
_ASIDE = "aside"

# S16[n] hashes of texts, and how to open their vectors, float32[n, d]: not all are open at a time
VectorSource = tuple[np.ndarray, Callable[[], np.ndarray]]


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """What decides the vector of a passage, beside its text."""

    encoder_fingerprint: str  # pooling and length, where they are not the model's own, are in it
    passage_prefix: str


class ShardDirectory:
    """Finished embedding shards of a build: ``00000.npy`` float32[n, d] and ``00000.hash.npy``,
    each of ``rows`` rows of the corpus.

    The vectors are renamed into place last, so a shard that can be seen is whole. Shards of the
    corpus as it was are kept under ``aside`` until the new ones are made.
    """

    def __init__(self, path: Path, key: EmbeddingKey, rows: int = SHARD_ROWS) -> None:
        self.path = path
        self.key = key
        self.rows = rows

    def open(self) -> None:
        """Make the directory ready for ``key``; shards of another key are deleted."""
        key_file = self.path / "key.json"
        text = json.dumps([self.key.encoder_fingerprint, self.key.passage_prefix])
        if key_file.is_file() and key_file.read_text(encoding="utf-8") == text:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        write_atomically(key_file, lambda file: file.write(text.encode()))

    def write(self, shard: int, hashes: np.ndarray, vectors: np.ndarray) -> None:
        """Write one shard; S16[n] hashes and float32[n, d] vectors."""
        write_atomically(self._hashes(shard), lambda file: np.save(file, hashes))
        write_atomically(self._vectors(shard), lambda file: np.save(file, vectors))

    def holds(self, shard: int, hashes: np.ndarray) -> bool:
        """Whether the shard is there, for exactly these texts in this order."""
        return self._vectors(shard).is_file() and np.array_equal(self.hashes(shard), hashes)

    def hashes(self, shard: int) -> np.ndarray:
        """S16[n]: the text hashes of a shard that is there."""
        return np.load(self._hashes(shard), allow_pickle=False)

    def read(self, shard: int) -> np.ndarray:
        """float32[n, d] of a shard, memory-mapped."""
        return np.load(self._vectors(shard), mmap_mode="r", allow_pickle=False)

    def shards(self) -> list[int]:
        """Numbers of the shards that are there."""
        names = (p.name.removesuffix(".npy") for p in self.path.glob("*.npy"))
        return sorted(int(name) for name in names if name.isdigit())

    def between(self, start: int, end: int) -> Iterator[np.ndarray]:
        """float32[n, d] blocks of the vectors of rows ``start`` to ``end``, in order."""
        for n in range(start // self.rows, -(-end // self.rows)):
            first = n * self.rows
            yield self.read(n)[max(start - first, 0) : end - first]

    def set_aside(self, shards: Sequence[int]) -> None:
        """Move shards out of the way of new ones, among those that were before."""
        aside = self._aside()
        aside.path.mkdir(exist_ok=True)
        free = max(aside.shards(), default=-1) + 1
        for number, shard in enumerate(shards, start=free):
            hashes = self.hashes(shard)
            write_atomically(aside._hashes(number), lambda file, h=hashes: np.save(file, h))
            os.replace(self._vectors(shard), aside._vectors(number))

    def sources_aside(self) -> list[VectorSource]:
        """The shards that were set aside."""
        aside = self._aside()
        return [(aside.hashes(n), lambda n=n: aside.read(n)) for n in aside.shards()]

    def drop_aside(self) -> None:
        """Delete the shards that were set aside."""
        shutil.rmtree(self._aside().path, ignore_errors=True)

    def _aside(self) -> ShardDirectory:
        return ShardDirectory(self.path / _ASIDE, self.key, self.rows)

    def _hashes(self, shard: int) -> Path:
        return self.path / f"{shard:05}.hash.npy"

    def _vectors(self, shard: int) -> Path:
        return self.path / f"{shard:05}.npy"


class KnownVectors:
    """Looks up vectors by text hash; of equal hashes in ``sources`` the first counts.

    >>> vectors = np.array([[2.0], [1.0]], "f4")
    >>> known = KnownVectors([(np.array([b"b", b"a"], "S16"), lambda: vectors)])
    >>> known.find(np.array([b"a", b"x", b"b"], "S16"), dimension=1)
    (array([ True, False,  True]), array([[1.],
           [2.]], dtype=float32))
    """

    def __init__(self, sources: Sequence[VectorSource]) -> None:
        self._open = [opened for _, opened in sources]
        hashes = [hashes for hashes, _ in sources] or [np.empty(0, dtype="S16")]
        self._starts = np.cumsum([0, *map(len, hashes)])
        self._ordered, self._row_of = np.unique(np.concatenate(hashes), return_index=True)

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """bool[n]: whose vector is known, for S16[n] hashes."""
        return _matches(self._ordered, hashes)[0]

    def find(self, hashes: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
        """``(known bool[n], vectors float32[known.sum(), dimension])`` for S16[n] hashes."""
        known, places = _matches(self._ordered, hashes)
        rows = self._row_of[places[known]]
        source_of = np.searchsorted(self._starts, rows, side="right") - 1
        vectors = np.empty((len(rows), dimension), dtype=np.float32)
        for source in np.unique(source_of):
            here = source_of == source
            vectors[here] = self._open[source]()[rows[here] - self._starts[source]]
        return known, vectors


def _matches(ordered: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which hashes are among the ordered ones, and at which places."""
    if not len(ordered):
        return np.zeros(len(hashes), dtype=bool), np.zeros(len(hashes), dtype=np.intp)
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return ordered[places] == hashes, places


def vectors_of_index(index: Path, key: EmbeddingKey) -> list[VectorSource]:
    """Hashes and vectors of a finished index that was made with ``key`` and has its vectors, else
    nothing."""
    try:
        manifest = Manifest.read(index)
    except IndexMismatchError:
        return []
    made_with = EmbeddingKey(manifest.encoder_fingerprint, manifest.passage_prefix)
    if made_with != key or manifest.imported:
        return []
    try:
        hashes = np.load(index / TEXT_HASHES_FILE, allow_pickle=False)
        stored = stored_vectors(manifest, index)
    except (OSError, ValueError):
        return []  # a damaged index: nothing can be reused
    whole = stored and len(hashes) == stored[-1][0] + len(stored[-1][1])
    return [(hashes[start : start + len(v)], lambda v=v: v) for start, v in stored] if whole else []


def stored_vectors(manifest: Manifest, index: Path) -> list[tuple[int, np.ndarray]]:
    """``(first row, float32[n, d])`` of an index that has its vectors, memory-mapped; empty where
    it does not. Raises OSError and ValueError where a file is missing or damaged."""
    if manifest.factory == FLAT:
        return [(f.start, read_flat(index / f.name)) for f in manifest.shard_files()]
    return [(0, read_flat(index / VECTORS_FILE))] if manifest.vectors_bytes else []
