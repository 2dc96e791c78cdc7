"""The nearest rows of vectors: what a flat index and one of FAISS's approximate ones share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from retrieval_index.errors import QueryError, faiss_reason

__all__ = ["FaissSearch", "ShardedSearch", "VectorSearch", "set_search_parameters"]


class VectorSearch(Protocol):
    """Finds rows by vector."""

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """``(scores float64[n, k], rows int64[n, k])`` of float32[n, d] queries, best first, ties
        by row; a row of -1 where fewer were found."""
        ...


class FaissSearch:
    """Asks an index of FAISS's. ``threads`` are OpenMP's (0: leave them alone)."""

    def __init__(self, index: Any, threads: int) -> None:
        self._index = index
        self._threads = threads

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """As FAISS scores them."""
        if self._threads > 0:
            import faiss

            faiss.omp_set_num_threads(self._threads)  # OpenMP keeps it for each calling thread
        found, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), top_k)
        scores = np.where(rows >= 0, found.astype(np.float64), -np.inf)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


class ShardedSearch:
    """Several indexes, each of a range of rows: asked one after the other, answers merged.

    ``parts`` are pairs of the first row and the index of a range.
    """

    def __init__(self, parts: Sequence[tuple[int, VectorSearch]]) -> None:
        self._parts = parts

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """As one index of all rows would."""
        found = [_from_row(part.search(queries, top_k), start) for start, part in self._parts]
        scores = np.concatenate([s for s, _ in found], axis=1)
        rows = np.concatenate([r for _, r in found], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :top_k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _from_row(found: tuple[np.ndarray, np.ndarray], start: int) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = found
    return scores, np.where(rows >= 0, rows + start, rows)


def set_search_parameters(index: Any, parameters: str) -> None:
    """Apply FAISS's run-time parameters, e.g. ``nprobe=32`` or ``efSearch=128``.

    Raises QueryError where FAISS does not take them.
    """
    import faiss

    try:
        space: Any = faiss.ParameterSpace()
        space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise QueryError(
            f"search_parameters={parameters}: FAISS refuses them for this index "
            f"({faiss_reason(error)}); give e.g. nprobe=32 for IVF, "
            "efSearch=128 for HNSW"
        ) from None
