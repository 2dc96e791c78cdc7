"""Search over a finished index: encode the queries, find the nearest vectors, read the passages.

Same vector, same answer, whatever else is in the batch: a flat index is searched exactly
(``exact.py``), and ties are broken by the corpus's order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_index.cache import LruCache
from retrieval_index.corpus import PassageStore, StoredPassage
from retrieval_index.encoder import Encoder, TextEncoder
from retrieval_index.errors import IndexMismatchError, QueryError, unicode_problem
from retrieval_index.hybrid import LEXICAL_DIRECTORY, LexicalIndex, fuse
from retrieval_index.manifest import Manifest
from retrieval_index.matching import (
    check_corpus,
    check_encoder,
    check_fingerprint,
    check_lexical,
    check_prefixes,
    open_passages,
    read_vectors,
)
from retrieval_index.rerank import Reranker
from retrieval_index.vector_search import VectorSearch

__all__ = ["MAX_QUERY_CHARACTERS", "DenseIndex", "Hit", "SearchStats"]

_CACHED_TOP_K = 100  # longer results are not kept; a kept one costs 120 bytes a passage
MAX_QUERY_CHARACTERS = 20_000  # far beyond what an encoder reads

Ranking = list[tuple[int, float]]  # row and score, best first
_Asked = tuple[str, int]  # query and top k


@dataclass(frozen=True, slots=True)
class Hit(StoredPassage):
    """One passage found. ``score`` is the cosine similarity (inner product of unit vectors); in
    hybrid search that of the fusion, with a reranker the reranker's."""

    score: float


@dataclass(slots=True)
class SearchStats:
    """Totals since an index was opened."""

    queries: int = 0  # asked for
    cache_hits: int = 0  # answered from the result cache
    duplicates: int = 0  # answered by an identical query of the same call
    embedding_hits: int = 0  # vector known from before, results not
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
        vectors: VectorSearch,
        store: PassageStore,
        encoder: TextEncoder,
        cache_size: int = 50_000,
        *,
        lexical: LexicalIndex | None = None,
        reranker: Reranker | None = None,
        depth: int = 50,
    ) -> None:
        self.manifest = manifest
        self.stats = SearchStats()
        self._lexical, self._reranker, self._depth = lexical, reranker, depth
        self._vectors = vectors
        self._store = store
        self._encoder = encoder
        self._results: LruCache[_Asked, Ranking] = LruCache(cache_size)
        self._embeddings: LruCache[str, np.ndarray] = LruCache(cache_size)
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
        pooling: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        cache_size: int = 50_000,
        device: str = "cpu",
        search_parameters: str = "",
        hybrid: bool = False,
        reranker: str = "",
        depth: int = 50,
        shards: Collection[int] | None = None,
    ) -> DenseIndex:
        """Open an index directory after checking that its parts belong together.

        ``corpus`` None: the file named in the manifest. ``encoder`` None: the one named there; a
        name or an encoder that is already loaded is checked by its fingerprint. Prefixes,
        ``pooling`` and ``max_length`` that are given must be the manifest's. ``threads`` are
        torch's and FAISS's (0: leave them alone). ``cache_size`` queries keep their results, and
        as many their vectors. ``search_parameters`` are FAISS's, of an approximate index
        (``nprobe=32``). ``hybrid``: the best ``depth`` by vector and by words (BM25) are fused;
        ``reranker``: a cross-encoder orders the best ``depth``. ``shards``: only these index files
        are searched.
        Raises IndexMismatchError (what differs, and the command that builds it again),
        CorpusError and EncoderError.
        """
        index = Path(index)
        manifest = Manifest.read(index)
        if shards is not None and not set(shards) <= set(range(manifest.shards)):
            raise IndexMismatchError(
                f"index {index} has {manifest.shards} shards, numbered from 0 on; wanted: "
                f"{sorted(shards)}"
            )
        corpus = Path(corpus) if corpus is not None else index / manifest.corpus
        again = manifest.rebuild_command(index, corpus)
        check_corpus(manifest, index, corpus, again)
        check_prefixes(manifest, index, query_prefix, passage_prefix)
        if encoder is None:
            encoder = manifest.encoder
        if isinstance(encoder, str):
            # checked before the model is loaded: a wrong name fails at once
            check_encoder(manifest, index, encoder, pooling, max_length)
            encoder = Encoder(
                encoder,
                threads=threads,
                batch_size=batch_size,
                device=device,
                **manifest.encoder_settings(),
            )
        else:
            check_fingerprint(manifest, index, type(encoder).__name__, encoder.fingerprint)
        vectors = read_vectors(manifest, index, again, threads, search_parameters, shards, device)
        store = open_passages(manifest, index, corpus, again)
        words = None
        if hybrid:
            check_lexical(manifest, index, corpus)
            words = LexicalIndex.open(index / LEXICAL_DIRECTORY, len(store), again)
        return cls(
            manifest,
            vectors,
            store,
            encoder,
            cache_size,
            lexical=words,
            reranker=Reranker(reranker, device=device) if reranker else None,
            depth=depth,
        )

    def __len__(self) -> int:
        return self.manifest.count

    def search(
        self,
        queries: Sequence[str],
        top_k: int,
        forbidden: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """The ``top_k`` nearest passages of each query, best first, ties in corpus order.

        ``forbidden`` are ids, for each query, that must not be found for it. Queries are embedded
        behind the manifest's query prefix. Identical ones are computed once. An approximate index
        may find fewer than ``top_k``.
        Raises QueryError on a query that is blank, overlong or not valid Unicode, and on ``top_k``
        below 1 or above the corpus.
        """
        self._check(queries, top_k, forbidden)
        unwanted = forbidden or [()] * len(queries)
        wanted = [min(top_k + len(ids), len(self)) for ids in unwanted]
        with self._lock:
            started = time.monotonic()
            try:
                found = self._search(list(zip(queries, wanted, strict=True)))
            finally:
                self.stats.busy_s += time.monotonic() - started
        return [
            [hit for hit in hits if hit.doc_id not in ids][:top_k]
            for hits, ids in zip(found, unwanted, strict=True)
        ]

    def _check(
        self, queries: Sequence[str], top_k: int, forbidden: Sequence[Collection[str]] | None
    ) -> None:
        if isinstance(queries, str):
            raise QueryError("queries must be a list of strings, got one string; put it in a list")
        self._check_top_k(top_k)
        for number, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise QueryError(f"query {number} is blank; a query needs some text")
            if len(query) > MAX_QUERY_CHARACTERS:
                raise QueryError(
                    f"query {number} has {len(query):,} characters; up to "
                    f"{MAX_QUERY_CHARACTERS:,} are searched for"
                )
            if problem := unicode_problem(query):
                raise QueryError(f"query {number} {problem}")
        if forbidden is not None and len(forbidden) != len(queries):
            raise QueryError(f"{len(forbidden)} sets of forbidden ids for {len(queries)} queries")

    def _check_top_k(self, top_k: int) -> None:
        if not 1 <= top_k <= len(self):
            raise QueryError(
                f"top_k={top_k}: must be between 1 and the {len(self)} passages of the index"
            )

    def _search(self, asked: Sequence[_Asked]) -> list[list[Hit]]:
        answers: dict[_Asked, Ranking] = {}
        distinct = list(dict.fromkeys(asked))
        for one in distinct:
            cached = self._results.get(one)
            if cached is not None:
                answers[one] = cached
        self.stats.queries += len(asked)
        self.stats.cache_hits += sum(one in answers for one in asked)
        fresh = [one for one in distinct if one not in answers]
        self.stats.duplicates += sum(one not in answers for one in asked) - len(fresh)
        for one, ranking in zip(fresh, self._ranked(fresh), strict=True):
            answers[one] = ranking
            if len(ranking) <= _CACHED_TOP_K:
                self._results.put(one, ranking)
        hits = {one: [self.passage(*pair) for pair in answers[one]] for one in distinct}
        return [hits[one] for one in asked]

    def _ranked(self, asked: Sequence[_Asked]) -> list[Ranking]:
        """Embedded together; ranked with those of the same top k, since how many are wanted of
        one query must not change what is found for another."""
        vectors = self._embedded([query for query, _ in asked])
        rankings: dict[_Asked, Ranking] = {}
        for top_k in dict.fromkeys(top_k for _, top_k in asked):
            own = [i for i, one in enumerate(asked) if one[1] == top_k]
            found = self._staged([asked[i][0] for i in own], vectors[own], top_k)
            rankings.update((asked[i], ranking) for i, ranking in zip(own, found, strict=True))
        return [rankings[one] for one in asked]

    def _staged(self, queries: Sequence[str], vectors: np.ndarray, top_k: int) -> list[Ranking]:
        """The stages that this index has: vectors, words, reranker."""
        if self._lexical is None and self._reranker is None:
            return self.search_rows(vectors, top_k)
        depth = min(max(top_k, self._depth), len(self))
        found = self.search_rows(vectors, depth)
        if self._lexical is not None:
            lexical = self._lexical.search(queries, depth)
            found = [
                fuse([[row for row, _ in dense], words])[:depth]
                for dense, words in zip(found, lexical, strict=True)
            ]
        if self._reranker is not None:
            found = [self._reranked(*pair) for pair in zip(queries, found, strict=True)]
        return [ranking[:top_k] for ranking in found]

    def _reranked(self, query: str, ranking: Ranking) -> Ranking:
        assert self._reranker is not None
        rows = [row for row, _ in ranking]
        scores = self._reranker.scores([(query, self._store[row].contents) for row in rows])
        return sorted(zip(rows, scores, strict=True), key=lambda pair: -pair[1])  # stable

    def embed(self, queries: Sequence[str]) -> np.ndarray:
        """float32[n, dimension] of queries, which ``search_rows`` of any shard takes.

        Raises QueryError as ``search``.
        """
        self._check(queries, 1, None)
        with self._lock:
            started = time.monotonic()
            self.stats.queries += len(queries)
            self.stats.duplicates += len(queries) - len(set(queries))
            vectors = self._embedded(queries)
            self.stats.busy_s += time.monotonic() - started
        return vectors

    def _embedded(self, queries: Sequence[str]) -> np.ndarray:
        """float32[n, d]; only queries whose vector is not kept go through the encoder, once."""
        known = {query: self._embeddings.get(query) for query in queries}
        fresh = [query for query, vector in known.items() if vector is None]
        self.stats.encoded += len(fresh)
        self.stats.embedding_hits += len(known) - len(fresh)
        if fresh:
            vectors = self._encoder.encode([self.manifest.query_prefix + query for query in fresh])
            for query, vector in zip(fresh, vectors, strict=True):
                known[query] = vector
                self._embeddings.put(query, vector.copy())  # a row alone, not its whole batch
        shape = (len(queries), self.manifest.dimension)
        return np.array([known[query] for query in queries], dtype=np.float32).reshape(shape)

    def search_vectors(self, vectors: np.ndarray, top_k: int) -> list[list[Hit]]:
        """The nearest passages of float32[n, dimension] query vectors of length 1."""
        return [
            [self.passage(row, score) for row, score in ranked]
            for ranked in self.search_rows(vectors, top_k)
        ]

    def search_rows(self, vectors: np.ndarray, top_k: int) -> list[Ranking]:
        """``(row, score)`` of the nearest passages of each of float32[n, dimension] vectors.

        Raises QueryError on vectors of another shape or that are not finite, and on ``top_k`` as
        ``search``.
        """
        self._check_top_k(top_k)
        self._check_vectors(vectors)
        scores, rows = self._vectors.search(vectors, top_k)
        return [
            [(int(row), float(score)) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(rows, scores, strict=True)
        ]

    def _check_vectors(self, vectors: np.ndarray) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.dimension:
            raise QueryError(
                f"query vectors of shape {vectors.shape}: must be (n, {self.manifest.dimension})"
            )
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise QueryError(f"query vector {bad[0]} is not finite")

    def passage(self, row: int, score: float) -> Hit:
        """What is at a row that ``search_rows`` found."""
        passage = self._store[row]
        return Hit(passage.doc_id, passage.contents, score)

    def close(self) -> None:
        """Close the corpus file."""
        self._store.close()

    def __enter__(self) -> DenseIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
