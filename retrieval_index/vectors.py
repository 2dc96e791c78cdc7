"""Vectors of texts that were embedded before, found by the hash of the text.

Two sources: a finished flat index, whose vectors FAISS gives back exactly, and the shards that
a killed build left. Both are only used where encoder and passage prefix are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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

__all__ = ["EmbeddingKey", "KnownVectors", "ShardDirectory", "stored_vectors", "vectors_of_index"]


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """What decides the vector of a passage, beside its text."""

    encoder_fingerprint: str
    passage_prefix: str


class ShardDirectory:
    """Finished embedding shards of a build: ``00000.npy`` float32[n, d] and ``00000.hash.npy``.

    The vectors are renamed into place last, so a shard that can be seen is whole.
    """

    def __init__(self, path: Path, key: EmbeddingKey) -> None:
        self.path = path
        self.key = key

    def open(self) -> None:
        """Make the directory ready for ``key``; shards of another key are deleted."""
        self.path.mkdir(parents=True, exist_ok=True)
        key_file = self.path / "key.json"
        text = json.dumps([self.key.encoder_fingerprint, self.key.passage_prefix])
        if key_file.is_file() and key_file.read_text(encoding="utf-8") == text:
            return
        for stale in self.path.iterdir():
            stale.unlink()
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

    def _hashes(self, shard: int) -> Path:
        return self.path / f"{shard:05}.hash.npy"

    def _vectors(self, shard: int) -> Path:
        return self.path / f"{shard:05}.npy"


class KnownVectors:
    """Looks up vectors by text hash.

    ``sources`` are pairs of S16[n] hashes and float32[n, d] vectors; of equal hashes the first
    counts.

    >>> known = KnownVectors([(np.array([b"b", b"a"], "S16"), np.array([[2.0], [1.0]], "f4"))])
    >>> known.find(np.array([b"a", b"x", b"b"], "S16"))
    (array([ True, False,  True]), array([[1.],
           [2.]], dtype=float32))
    """

    def __init__(self, sources: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._vectors = [vectors for _, vectors in sources]
        self._lookups = [np.unique(hashes, return_index=True) for hashes, _ in sources]

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """bool[n]: whose vector is known, for S16[n] hashes."""
        known = np.zeros(len(hashes), dtype=bool)
        for ordered, _ in self._lookups:
            known |= _matches(ordered, hashes)[0]
        return known

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(known bool[n], vectors float32[known.sum(), d])`` for S16[n] hashes."""
        known = np.zeros(len(hashes), dtype=bool)
        found: dict[int, np.ndarray] = {}
        for vectors, (ordered, row_of) in zip(self._vectors, self._lookups, strict=True):
            matches, places = _matches(ordered, hashes)
            for position in np.flatnonzero(matches & ~known):
                found[int(position)] = vectors[row_of[places[position]]]
            known |= matches
        rows = [found[position] for position in sorted(found)]
        return known, np.array(rows, dtype=np.float32)


def _matches(ordered: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which hashes are among the ordered ones, and at which places."""
    if not len(ordered):
        return np.zeros(len(hashes), dtype=bool), np.zeros(len(hashes), dtype=np.intp)
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return ordered[places] == hashes, places


def vectors_of_index(index: Path, key: EmbeddingKey) -> list[tuple[np.ndarray, np.ndarray]]:
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
    return [(hashes[start : start + len(v)], v) for start, v in stored] if whole else []


def stored_vectors(manifest: Manifest, index: Path) -> list[tuple[int, np.ndarray]]:
    """``(first row, float32[n, d])`` of an index that has its vectors, memory-mapped; empty where
    it does not. Raises OSError and ValueError where a file is missing or damaged."""
    if manifest.factory == FLAT:
        return [(f.start, read_flat(index / f.name)) for f in manifest.shard_files()]
    return [(0, read_flat(index / VECTORS_FILE))] if manifest.vectors_bytes else []
