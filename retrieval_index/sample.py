"""Sampled passages, embedded again: are the rows of an index theirs?

Where the vectors can be read they are compared. An approximate index is searched instead: it must
find the passages by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval_index.corpus import PassageStore
from retrieval_index.encoder import TextEncoder
from retrieval_index.vector_search import VectorSearch

__all__ = ["ENOUGH_FOUND", "Sample", "embed_sample"]

# Cosine between a stored vector and the passage's own: batches move it by 1e-6, an encoder in half
# precision, by which an imported index may have been made, by more.
_SAME, _SAME_IMPORTED = 0.999, 0.99
# Of an imported index a few may differ more: long passages, which its maker cut at another length.
_SHARE_SAME, _CUT_ELSEWHERE = 0.9, 0.9
ENOUGH_FOUND = 0.8  # share of passages that an approximate index must find by themselves
_AMONG, _MANY = 5, 1000  # an approximate index of many has it among its nearest few


@dataclass(frozen=True, slots=True)
class Sample:
    """``rows`` int64[n] of the corpus, ascending, and float32[n, d] ``vectors`` of their texts."""

    rows: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def cosines(self, stored: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """float[n]: to the vectors of an index, given as ``(first row, float32[m, d])`` parts."""
        of = np.searchsorted([start for start, _ in stored], self.rows, side="right") - 1
        theirs = [
            stored[part][1][row - stored[part][0]] for part, row in zip(of, self.rows, strict=True)
        ]
        return np.asarray((np.stack(theirs) * self.vectors).sum(axis=1))

    def wrong(self, cosines: np.ndarray, *, imported: bool) -> np.ndarray:
        """Rows whose stored vectors are not their passages'."""
        same = cosines >= (_SAME_IMPORTED if imported else _SAME)
        if imported and same.mean() >= _SHARE_SAME and cosines.min() >= _CUT_ELSEWHERE:
            return self.rows[:0]
        return self.rows[~same]

    def not_found(self, search: VectorSearch, count: int) -> np.ndarray:
        """Rows that an index of ``count`` passages does not find by their own vectors."""
        nearest = _AMONG if count >= _MANY else 1
        found = search.search(self.vectors, nearest)[1]
        return self.rows[~(found == self.rows[:, None]).any(axis=1)]


def embed_sample(store: PassageStore, encoder: TextEncoder, prefix: str, samples: int) -> Sample:
    """Of ``samples`` rows (all, where there are fewer), the same ones every time."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(store), min(samples, len(store)), replace=False))
    return Sample(rows, encoder.encode([prefix + store[int(row)].contents for row in rows]))
