"""The retriever pool's actor: a dense index, or the way to a ``/retrieve`` endpoint.

Concurrent searches of many episodes share batches; the blocking search runs in its own thread, so
that the actor's event loop stays free for the next ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.config import RetrieverConfig
from pipeline.errors import InfrastructureError, UserError
from pipeline.failpoints import failpoint
from pipeline.types import Passage
from retrieval_index.batching import MicroBatcher
from retrieval_index.client import RetrieveClient
from retrieval_index.errors import RetrievalError, ServerError
from retrieval_index.index import DenseIndex, Hit, SearchStats

__all__ = ["Retriever"]


class _Source(Protocol):
    """What DenseIndex and RetrieveClient have in common."""

    stats: SearchStats

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]: ...


class Retriever:
    """Searches an index directory, or the endpoint ``config.url`` where that is set.

    Plain Python; actors/pool.py makes Ray actors of it. The constructor blocks while index and
    encoder load, and sets torch's threads of this process to ``config.threads``.
    Raises UserError where index, corpus and encoder do not belong together.
    """

    def __init__(self, config: RetrieverConfig, index: str, corpus: str) -> None:
        try:
            self._source = _open_source(config, index, corpus)
        except RetrievalError as error:
            raise UserError(str(error)) from error
        self._batcher: MicroBatcher[list[Hit]] = MicroBatcher(
            self._source.search,
            max_batch=config.batch_size if config.merge else 1,
            max_wait_ms=config.max_batch_wait_ms,
        )

    async def ready(self) -> bool:
        """Whether it can take work."""
        return True

    async def search(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        """One tuple of ``top_k`` passages a query, best first; a blank query finds nothing.

        Raises UserError where ``top_k`` is above the corpus, InfrastructureError where the
        endpoint fails.
        """
        asked = [query for query in queries if query.strip()]
        match failpoint("retriever"):
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
        try:
            found = iter(await self._batcher.search(asked, top_k))
        except ServerError as error:
            raise InfrastructureError(str(error)) from error
        except RetrievalError as error:
            raise UserError(str(error)) from error
        return [_passages(next(found)) if query.strip() else () for query in queries]

    async def stats(self) -> dict[str, float]:
        """Totals: ``queries``, ``cache_hits``, ``duplicates`` (of the same batch), ``encoded``,
        ``batches``, ``busy_s``."""
        return {**self._source.stats.as_dict(), "batches": float(self._batcher.batches)}


def _open_source(config: RetrieverConfig, index: str, corpus: str) -> _Source:
    if config.url:
        return RetrieveClient(config.url, timeout_s=config.request_timeout_s)
    return DenseIndex.open(
        Path(index),
        Path(corpus),
        config.encoder,
        config.threads,
        query_prefix=config.query_prefix,
        passage_prefix=config.passage_prefix,
        batch_size=config.batch_size,
        cache_size=config.cache_size,
        device="cuda" if config.num_gpus else "cpu",
    )


def _passages(hits: Sequence[Hit]) -> tuple[Passage, ...]:
    return tuple(Passage(doc_id=h.doc_id, title=h.title, text=h.text, score=h.score) for h in hits)
