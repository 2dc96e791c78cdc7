"""The retriever pool's actor: an index, a shard of one, or the way to a ``/retrieve`` endpoint.

Concurrent searches of many episodes share batches; the blocking search runs in its own thread, so
that the actor's event loop stays free for the next ones. An actor of one shard answers vectors:
``actors/shard_search.py`` embeds a query once and asks all shards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.config import RetrieverConfig
from pipeline.errors import InfrastructureError, UserError
from pipeline.failpoints import failpoint
from pipeline.types import Passage
from retrieval_index.batching import MicroBatcher
from retrieval_index.client import RetrieveClient
from retrieval_index.errors import OverloadError, RetrievalError, ServerError
from retrieval_index.index import MAX_QUERY_CHARACTERS, DenseIndex, Hit, SearchStats
from retrieval_index.manifest import Manifest
from retrieval_index.matching import check_shards

__all__ = ["Ranking", "Retriever"]

Ranking = list[tuple[int, Passage]]  # row and passage, best first


class _Source(Protocol):
    """What DenseIndex and RetrieveClient have in common."""

    stats: SearchStats

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]: ...


class Retriever:
    """Searches an index directory, or the endpoint ``config.url`` where that is set.

    Plain Python; actors/pool.py makes Ray actors of it. The constructor blocks while index and
    encoder load, and sets torch's threads of this process to ``config.threads``.
    ``shard``: the part of the index that this actor searches, where ``config.shards`` is above 1.
    Raises UserError where index, corpus and encoder do not belong together.
    """

    def __init__(self, config: RetrieverConfig, index: str, corpus: str, shard: int = 0) -> None:
        try:
            self._source = _open_source(config, index, corpus, shard)
        except RetrievalError as error:
            raise UserError(str(error)) from error
        batching: dict[str, Any] = {
            "max_batch": config.batch_size if config.merge else 1,
            "max_wait_ms": config.max_batch_wait_ms,
            "max_waiting": config.max_waiting,
        }
        self._batcher: MicroBatcher[str, list[Hit]] = MicroBatcher(self._source.search, **batching)
        self._embedding: MicroBatcher[str, np.ndarray] = MicroBatcher(self._embed, **batching)
        self._by_vector: MicroBatcher[np.ndarray, Ranking] = MicroBatcher(self._rank, **batching)
        self._degraded = 0
        self._ranking_s = 0.0  # of a shard: wall time in ``search_rows``

    async def ready(self) -> bool:
        """Whether it can take work."""
        return True

    async def search(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        """One tuple of ``top_k`` passages a query (or all there are), best first; a blank query
        finds nothing.

        Raises InfrastructureError where the endpoint fails or too many queries wait (others may
        have fewer).
        """
        asked = [query[:MAX_QUERY_CHARACTERS] for query in queries if query.strip()]
        match failpoint("retriever"):
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
        with _typed_errors():
            found = iter(await self._batcher.search(asked, self._at_most(top_k)))
        return [_passages(next(found)) if query.strip() else () for query in queries]

    async def embed(self, queries: Sequence[str]) -> np.ndarray:
        """float32[n, d] of queries that are not blank, for ``search_rows`` of every shard."""
        with _typed_errors():
            asked = [query[:MAX_QUERY_CHARACTERS] for query in queries]
            return np.stack(await self._embedding.search(asked, 1))

    async def search_rows(self, vectors: np.ndarray, top_k: int) -> list[Ranking]:
        """``(row, passage)`` of this shard's nearest, best first, for each of float32[n, d]."""
        with _typed_errors():
            return await self._by_vector.search(list(vectors), self._at_most(top_k))

    def _at_most(self, top_k: int) -> int:
        """Those that a question forbids are asked for beside ``top_k``, and may not be there."""
        return min(top_k, len(self._source)) if isinstance(self._source, DenseIndex) else top_k

    async def count_degraded(self, queries: int) -> None:
        """Note that so many queries were answered without a shard that failed."""
        self._degraded += queries

    def _embed(self, queries: Sequence[str], _: int) -> list[np.ndarray]:
        assert isinstance(self._source, DenseIndex)
        return list(self._source.embed(queries))

    def _rank(self, vectors: Sequence[np.ndarray], top_k: int) -> list[Ranking]:
        """Equal vectors are searched for once."""
        source = self._source
        assert isinstance(source, DenseIndex)
        began = time.monotonic()
        try:
            distinct = {vector.tobytes(): vector for vector in vectors}
            found = source.search_rows(np.stack(list(distinct.values())), top_k)
            rankings = {
                key: [(row, _passage(source.passage(row, score))) for row, score in ranked]
                for key, ranked in zip(distinct, found, strict=True)
            }
            return [rankings[vector.tobytes()] for vector in vectors]
        finally:
            self._ranking_s += time.monotonic() - began

    async def stats(self) -> dict[str, float]:
        """Totals: ``queries``, ``cache_hits``, ``duplicates`` (of the same batch),
        ``embedding_hits``, ``encoded``, ``batches``, ``degraded``, ``busy_s``."""
        batches = self._batcher.batches + self._embedding.batches + self._by_vector.batches
        of_source = self._source.stats.as_dict()
        return {
            **of_source,
            "busy_s": of_source["busy_s"] + self._ranking_s,
            "batches": float(batches),
            "degraded": float(self._degraded),
        }


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except (ServerError, OverloadError) as error:
        raise InfrastructureError(str(error)) from error
    except RetrievalError as error:
        raise UserError(str(error)) from error


def _open_source(config: RetrieverConfig, index: str, corpus: str, shard: int) -> _Source:
    if config.url:
        return RetrieveClient(config.url, timeout_s=config.request_timeout_s)
    check_shards(Manifest.read(Path(index)), Path(index), config.shards)
    return DenseIndex.open(
        Path(index),
        Path(corpus),
        config.encoder,
        config.threads,
        query_prefix=config.query_prefix,
        passage_prefix=config.passage_prefix,
        pooling=config.pooling,
        max_length=config.max_length,
        batch_size=config.batch_size,
        cache_size=config.cache_size,
        device="cuda" if config.num_gpus else "cpu",
        shards=None if config.shards == 1 else {shard},
        **config.stages(),
    )


def _passages(hits: Sequence[Hit]) -> tuple[Passage, ...]:
    return tuple(map(_passage, hits))


def _passage(hit: Hit) -> Passage:
    return Passage(doc_id=hit.doc_id, title=hit.title, text=hit.text, score=hit.score)
