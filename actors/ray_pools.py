"""The pools of ``pipeline.pools`` on Ray: each a thin class over an `ActorPool`."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.pool import ActorPool
from actors.pool_client import PoolClient
from actors.shard_search import ShardSearch
from pipeline.errors import InfrastructureError
from pipeline.types import Group, Passage, RolloutRequest, Trajectory, Verdict

__all__ = [
    "LastingTotals",
    "RayJudgePool",
    "RayRetrieverPool",
    "RayRolloutPool",
    "RemoteJudge",
    "RemoteSearch",
]


class GarbageError(InfrastructureError):
    """A judge's answer is none."""


@dataclass(frozen=True, slots=True)
class RemoteSearch:
    """``Search`` of an episode, over the retriever pool; picklable into rollout actors."""

    client: PoolClient
    sharded: ShardSearch | None = None  # where no actor has the whole index

    async def __call__(self, query: str, top_k: int) -> tuple[Passage, ...]:
        """Passages for one query. Raises InfrastructureError after all retries."""
        return (await self.search_all([query], top_k))[0]

    async def search_all(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        """Passages for several queries, in one call."""
        if self.sharded is not None:
            return await self.sharded.search(queries, top_k)
        results: list[tuple[Passage, ...]] = await self.client.call(
            "search", queries, top_k, like="".join(queries[:1])
        )
        return results


@dataclass(frozen=True, slots=True)
class RemoteJudge:
    """``EarlyJudge`` over the judge pool; picklable into rollout actors. Raises InfrastructureError
    where no answer comes in the time of one call: the judge is asked again with the whole group."""

    client: PoolClient
    by_round: bool

    async def judge(self, trajectory: Trajectory) -> tuple[Verdict | None, ...]:
        """One verdict a search round."""
        verdicts = await self.client.call("judge", [trajectory])
        _check_verdicts(verdicts, [trajectory])
        judged: tuple[Verdict | None, ...] = verdicts[0]
        return judged

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        """The verdict on the last search round."""
        verdict = await self.client.call("judge_last", trajectory)
        if not isinstance(verdict, Verdict | None):
            raise GarbageError(f"a judge answered {str(verdict)[:80]!r} for a search round")
        return verdict


class RayRolloutPool:
    """Implements ``pipeline.pools.RolloutPool``."""

    def __init__(self, actors: ActorPool) -> None:
        self.actors = actors

    async def rollout(self, request: RolloutRequest) -> Group:
        """See ``pipeline.pools.RolloutPool``; a failed group is played again elsewhere."""
        group: Group = await self.actors.call("rollout", request)
        return group

    async def rollout_wave(self, requests: Sequence[RolloutRequest], seed: int) -> list[Group]:
        """See ``pipeline.pools.RolloutPool``: request i goes to engine i modulo their number."""
        places = len(self.actors.members)

        async def of_place(place: int) -> list[Group]:
            asked = list(requests[place::places])
            groups: list[Group] = await self.actors.call_place(
                place,
                "rollout_wave",
                asked,
                zlib.crc32(f"{seed} {place}".encode()),
                timeout_s=self.actors.spec.request_timeout_s * len(asked),
            )
            return groups

        busy = range(min(places, len(requests)))
        waves = await asyncio.gather(*(of_place(place) for place in busy))
        return [waves[i % places][i // places] for i in range(len(requests))]

    async def stats(self) -> Mapping[str, float]:
        """See ``pipeline.pools.RolloutPool``; sums over the engines in service."""
        return await _sums(self.actors)


class RayRetrieverPool:
    """Implements ``pipeline.pools.RetrieverPool``. With ``shards`` above 1 actor i has shard i
    modulo their number; ``partial``: a failed shard is left out, and a lost one not waited for."""

    def __init__(self, actors: ActorPool, shards: int = 1, partial: bool = False) -> None:
        self.actors = actors
        self._totals = LastingTotals()
        self._shards, self._partial = shards, partial
        self._sharded = self._shard_search()

    async def search(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        """See ``pipeline.pools.RetrieverPool``."""
        if self._sharded is not None:
            return await self._sharded.search(queries, top_k)
        passages: list[tuple[Passage, ...]] = await self.actors.call("search", list(queries), top_k)
        return passages

    async def stats(self) -> Mapping[str, float]:
        """See ``pipeline.pools.RetrieverPool``; as those of judges, they never fall."""
        return self._totals.after(await self.actors.broadcast("stats"))

    def search_from_actors(self, deadline_s: float | None = None) -> RemoteSearch:
        """What rollout actors search with. ``deadline_s``: of a search, whatever befalls it."""
        return RemoteSearch(
            self.actors.client(deadline_s=deadline_s), self._shard_search(deadline_s)
        )

    def _shard_search(self, deadline_s: float | None = None) -> ShardSearch | None:
        if self._shards == 1:
            return None
        half_s = deadline_s / 2 if deadline_s else None  # the query is embedded, then searched for
        replicas = tuple(
            self.actors.client(every=(n, self._shards), waits=not self._partial, deadline_s=half_s)
            for n in range(self._shards)
        )
        return ShardSearch(self.actors.client(deadline_s=half_s), replicas, self._partial)


class RayJudgePool:
    """Implements ``pipeline.pools.JudgePool``. An actor has ``groups_at_once`` calls under way;
    the deadline of the others begins when their turn comes."""

    def __init__(self, actors: ActorPool, groups_at_once: int) -> None:
        self.actors = actors
        self._places = asyncio.Semaphore(groups_at_once * len(actors.members))
        self._totals = LastingTotals()

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """See ``pipeline.pools.JudgePool``. An answer that is none is a failure of the judge, which
        is asked once more."""
        try:
            return await self._judged(trajectories)
        except GarbageError:
            return await self._judged(trajectories)

    async def _judged(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        async with self._places:
            verdicts: list[tuple[Verdict | None, ...]] = await self.actors.call(
                "judge", list(trajectories)
            )
        _check_verdicts(verdicts, trajectories)
        return verdicts

    def judge_from_actors(self, *, by_round: bool) -> RemoteJudge:
        """What rollout actors judge early with."""
        client = self.actors.client(deadline_s=self.actors.spec.request_timeout_s)
        return RemoteJudge(client, by_round)

    async def stats(self) -> Mapping[str, float]:
        """See ``pipeline.pools.JudgePool``. What a lost actor had done stays counted, as far as it
        was asked for."""
        return self._totals.after(await self.actors.broadcast("stats"))


def _check_verdicts(answer: Sequence[Any], trajectories: Sequence[Trajectory]) -> None:
    """Raises GarbageError where it is not a verdict, or None, for each search round."""
    if not isinstance(answer, list | tuple) or len(answer) != len(trajectories):
        raise GarbageError(
            f"a judge answered {str(answer)[:80]!r} for {len(trajectories)} trajectories"
        )
    for verdicts, trajectory in zip(answer, trajectories, strict=True):
        rounds = len(trajectory.search_rounds)
        whole = isinstance(verdicts, tuple | list) and len(verdicts) == rounds
        if not whole or not all(isinstance(v, Verdict | None) for v in verdicts):
            raise GarbageError(
                f"a judge answered {str(verdicts)[:80]!r} for {rounds} search rounds"
            )


class LastingTotals:
    """Sums of actors' totals that never fall: an actor that does not answer keeps what it said
    last, and one that was started again goes on from there.

    >>> totals = LastingTotals()
    >>> totals.after({"a": {"calls": 5.0}, "b": {"calls": 2.0}})["calls"]
    7.0
    >>> totals.after({"a": {"calls": 1.0}, "b": RuntimeError("away")})["calls"]
    8.0
    """

    def __init__(self) -> None:
        self._last: dict[str, Counter[str]] = {}
        self._ended: Counter[str] = Counter()  # of processes that are no more

    def after(self, answers: Mapping[str, Any]) -> dict[str, float]:
        """The sums, with what actors say now (an exception: nothing)."""
        for name, answer in answers.items():
            if isinstance(answer, Exception):
                continue
            before = self._last.get(name, Counter())
            if any(answer.get(key, 0.0) < value for key, value in before.items()):
                self._ended.update(before)
            self._last[name] = Counter(answer)
        totals = Counter(self._ended)
        for last in self._last.values():
            totals.update(last)
        return dict(totals)


async def _sums(actors: ActorPool) -> dict[str, float]:
    """Each total summed over the actors that answer (a lost one is being replaced)."""
    totals: Counter[str] = Counter()
    for answer in (await actors.broadcast("stats")).values():
        if not isinstance(answer, Exception):
            totals.update(answer)
    return dict(totals)
