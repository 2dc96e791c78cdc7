"""Search over a finished index: encode the queries, ask FAISS, read the passages.

Same vector, same answer, whatever else is in the batch: candidates of a flat index are scored
again in float64, and ties are broken by the corpus's order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.cache import LruCache
from retrieval_index.corpus import PassageStore
from retrieval_index.encoder import Encoder, TextEncoder, encoder_fingerprint, resolve_encoder
from retrieval_index.errors import QueryError
from retrieval_index.manifest import Manifest
from retrieval_index.matching import (
    check_corpus,
    check_encoder,
    check_prefixes,
    open_passages,
    read_vectors,
)

__all__ = ["DenseIndex", "Hit", "SearchStats"]

_EXTRA_CANDIDATES = 8  # taken beyond top_k, so that scoring again can settle near ties


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found. ``score`` is the cosine similarity (inner product of unit vectors)."""

    doc_id: str
    title: str
    text: str
    score: float

    @property
    def contents(self) -> str:
        """Title and text as in the corpus format.

        >>> Hit("0", "Paris", "A city.", 0.5).contents
        '"Paris"\\nA city.'
        """
        return f'"{self.title}"\n{self.text}'


@dataclass(slots=True)
class SearchStats:
    """Totals since an index was opened."""

    queries: int = 0  # asked for
    cache_hits: int = 0  # answered from the result cache
    duplicates: int = 0  # answered by an identical query of the same call
    encoded: int = 0  # sent through the encoder
    busy_s: float = 0.0  # wall time inside search()

    def as_dict(self) -> dict[str, float]:
        """For metrics."""
        return {name: float(getattr(self, name)) for name in self.__slots__}


class DenseIndex:
    """An index that is open for search; make one with ``DenseIndex.open``.

    ``search`` may be called from several threads: one call at a time runs.
    """

    def __init__(
        self,
        manifest: Manifest,
        faiss_index: Any,
        store: PassageStore,
        encoder: TextEncoder,
        cache_size: int = 50_000,
        threads: int = 1,
    ) -> None:
        self.manifest = manifest
        self.stats = SearchStats()
        self._faiss = faiss_index
        self._store = store
        self._encoder = encoder
        self._threads = threads
        self._cache: LruCache[tuple[str, int], list[Hit]] = LruCache(cache_size)
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        index: Path,
        corpus: Path | None = None,
        encoder: str | TextEncoder | None = None,
        threads: int = 1,
        *,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        batch_size: int = 32,
        cache_size: int = 50_000,
        device: str = "cpu",
    ) -> DenseIndex:
        """Open an index directory after checking that its parts belong together.

        ``corpus`` None: the file named in the manifest. ``encoder`` None: the one named there; a
        name or an encoder that is already loaded is checked by its fingerprint. Prefixes that are
        given must be the manifest's. ``threads`` are torch's and FAISS's (0: leave them alone).
        Raises IndexMismatchError (what differs, and the command that builds it again),
        CorpusError and EncoderError.
        """
        index = Path(index)
        manifest = Manifest.read(index)
        corpus = Path(corpus) if corpus is not None else index / manifest.corpus
        again = manifest.rebuild_command(index, corpus)
        check_corpus(manifest, index, corpus, again)
        check_prefixes(manifest, index, query_prefix, passage_prefix)
        if encoder is None:
            encoder = manifest.encoder
        if isinstance(encoder, str):
            # checked before the model is loaded: a wrong name fails at once
            check_encoder(manifest, index, encoder, encoder_fingerprint(resolve_encoder(encoder)))
            encoder = Encoder(encoder, threads=threads, batch_size=batch_size, device=device)
        else:
            check_encoder(manifest, index, type(encoder).__name__, encoder.fingerprint)
        vectors = read_vectors(manifest, index, again)
        store = open_passages(manifest, index, corpus, again)
        return cls(manifest, vectors, store, encoder, cache_size, threads)

    def __len__(self) -> int:
        return self.manifest.count

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """The ``top_k`` nearest passages of each query, best first, ties in corpus order.

        Queries are embedded behind the manifest's query prefix. Identical ones are computed
        once. An approximate index may find fewer than ``top_k``.
        Raises QueryError on a blank query and on ``top_k`` below 1 or above the corpus.
        """
        self._check_query(queries, top_k)
        with self._lock:
            started = time.monotonic()
            try:
                return self._search(queries, top_k)
            finally:
                self.stats.busy_s += time.monotonic() - started

    def _check_query(self, queries: Sequence[str], top_k: int) -> None:
        if isinstance(queries, str):
            raise QueryError("queries must be a list of strings, got one string; put it in a list")
        if not 1 <= top_k <= len(self):
            raise QueryError(
                f"top_k={top_k}: must be between 1 and the {len(self)} passages of the index"
            )
        for number, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise QueryError(f"query {number} is blank; a query needs some text")

    def _search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        answers: dict[str, list[Hit]] = {}
        distinct = list(dict.fromkeys(queries))
        for query in distinct:
            cached = self._cache.get((query, top_k))
            if cached is not None:
                answers[query] = cached
        self.stats.queries += len(queries)
        self.stats.cache_hits += sum(query in answers for query in queries)
        fresh = [query for query in distinct if query not in answers]
        self.stats.duplicates += sum(query not in answers for query in queries) - len(fresh)
        self.stats.encoded += len(fresh)
        if fresh:
            vectors = self._encoder.encode([self.manifest.query_prefix + query for query in fresh])
            for query, hits in zip(fresh, self.search_vectors(vectors, top_k), strict=True):
                answers[query] = hits
                self._cache.put((query, top_k), hits)
        return [list(answers[query]) for query in queries]

    def search_vectors(self, vectors: np.ndarray, top_k: int) -> list[list[Hit]]:
        """The nearest passages of float32[n, dimension] query vectors of length 1."""
        self._limit_threads()
        wanted = min(top_k + _EXTRA_CANDIDATES, len(self))
        scores, rows = self._faiss.search(np.ascontiguousarray(vectors, dtype=np.float32), wanted)
        return [
            self._hits(*self._ranked(vector, candidates[candidates >= 0], found), top_k)
            for vector, candidates, found in zip(vectors, rows, scores, strict=True)
        ]

    def _limit_threads(self) -> None:
        """OpenMP keeps its number of threads for each calling thread: set it where it is used."""
        if self._threads > 0:
            import faiss

            faiss.omp_set_num_threads(self._threads)

    def _ranked(
        self, vector: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """int64[c] candidate rows and float64[c] scores, best first, ties by row."""
        if self.manifest.factory == "Flat":
            candidates = self._faiss.reconstruct_batch(rows).astype(np.float64)
            exact = (candidates * vector.astype(np.float64)).sum(axis=1)
        else:
            exact = scores[: len(rows)].astype(np.float64)
        order = np.lexsort((rows, -exact))
        return rows[order], exact[order]

    def _hits(self, rows: np.ndarray, scores: np.ndarray, top_k: int) -> list[Hit]:
        found = []
        for row, score in zip(rows[:top_k], scores[:top_k], strict=True):
            passage = self._store[int(row)]
            found.append(Hit(passage.doc_id, passage.title, passage.text, float(score)))
        return found

    def close(self) -> None:
        """Close the corpus file."""
        self._store.close()

    def __enter__(self) -> DenseIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
