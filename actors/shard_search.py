"""Search over an index whose shards different actors have: embed once, ask all, merge.

    query ─► embed (any actor) ─► vector ─┬─► shard 0: its top k ─┐
                                          ├─► shard 1: its top k ─┼─► merged top k, ties by row
                                          └─► shard 2: its top k ─┘

Picklable into rollout actors. A shard that fails after all retries makes the search fail, or
(``degraded="partial"``) is left out and counted; it never passes for "nothing found".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.pool_client import PoolClient
from pipeline.errors import InfrastructureError
from pipeline.types import Passage

if TYPE_CHECKING:
    from actors.retriever import Ranking

logger = logging.getLogger(__name__)

__all__ = ["ShardSearch", "merge_rankings"]


@dataclass(frozen=True, slots=True)
class ShardSearch:
    """``everyone`` calls any actor, ``shards[i]`` the replicas of shard i."""

    everyone: PoolClient
    shards: tuple[PoolClient, ...]
    partial: bool

    async def search(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        """One tuple of ``top_k`` passages a query, best first; a blank query finds nothing.

        Raises InfrastructureError where a shard fails (with ``partial``: where all do).
        """
        asked = [query for query in queries if query.strip()]
        if not asked:
            return [() for _ in queries]
        vectors = await self.everyone.call("embed", asked, like=asked[0])
        answers = await asyncio.gather(
            *(shard.call("search_rows", vectors, top_k, like=asked[0]) for shard in self.shards),
            return_exceptions=True,
        )
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in failed:
            if not isinstance(error, InfrastructureError) or not self.partial:
                raise error
        found: list[list[Ranking]] = [a for a in answers if not isinstance(a, BaseException)]
        if not found:
            raise InfrastructureError(f"all shards failed; the first: {failed[0]}")
        if failed:
            logger.warning(
                "searched without %d of %d shards: %s", len(failed), len(answers), failed[0]
            )
            answered = next(
                shard
                for shard, answer in zip(self.shards, answers, strict=True)
                if not isinstance(answer, BaseException)
            )
            with contextlib.suppress(InfrastructureError):  # the answer is what matters
                await answered.call("count_degraded", len(asked))
        merged = iter([merge_rankings(of_query, top_k) for of_query in zip(*found, strict=True)])
        return [next(merged) if query.strip() else () for query in queries]


def merge_rankings(rankings: Sequence[Ranking], top_k: int) -> tuple[Passage, ...]:
    """The best of all, ties by row."""
    every = [pair for ranking in rankings for pair in ranking]
    best = sorted(every, key=lambda pair: (-pair[1].score, pair[0]))
    return tuple(passage for _, passage in best[:top_k])
