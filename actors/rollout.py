"""The rollout pool's actor: one engine that plays whole search episodes.

Generation, parsing and searching of one episode happen in one place, so that a token crosses
no process boundary between being sampled and being recorded. Plain Python; ``actors.pool``
makes Ray actors of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from actors.early_judging import EarlyJudge, EarlyJudging
from actors.engine import Engine, Probe, WeightReceipt
from pipeline.config import PolicyConfig, ProtocolConfig, RolloutConfig
from pipeline.episode.lockstep import Lockstep
from pipeline.episode.play import Generate, Score, Search, play_episode
from pipeline.episode.protocol import SearchProtocol
from pipeline.errors import ActorLostError, InfrastructureError, first_error
from pipeline.trace import Span
from pipeline.types import (
    Generation,
    Group,
    Passage,
    Purpose,
    RolloutRequest,
    Sampling,
    Trajectory,
)

__all__ = ["RolloutActor"]

_T = TypeVar("_T")


class BatchSearch(Protocol):
    """A ``Search`` that also takes several queries in one call, which lockstep needs."""

    async def search_all(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        """One tuple of passages a query."""
        ...


class RolloutActor:
    """An engine, a tokenizer with its protocol, and the way to the retrievers.

    ``score`` and ``search`` are picklable callables; with ``judge`` trajectories for training are
    judged while they are played. Blocks until the model is loaded.
    Raises UserError for a tokenizer that the protocol cannot use.
    """

    def __init__(
        self,
        *,
        policy: PolicyConfig,
        protocol: ProtocolConfig,
        rollout: RolloutConfig,
        score: Score,
        search: Search,
        seed: int,
        transport: str = "object_store",
        judge: EarlyJudge | None = None,
    ) -> None:
        self._engine = Engine(policy, rollout, seed, transport=transport)
        self._protocol = SearchProtocol(protocol, _load_tokenizer(policy.path))
        self._max_model_len = policy.max_model_len
        self._score, self._search, self._judge = score, search, judge
        self._rounds = 0
        self._retrieve_s = 0.0
        self._waiting: Counter[str] = Counter()  # episodes by the pool that they wait for

    async def ready(self) -> bool:
        """Whether it can take work: samples one token to be sure."""
        await self._generate(self._protocol.encode("?"), Sampling(max_round_tokens=1))
        return True

    async def rollout(self, request: RolloutRequest) -> Group:
        """Play ``request.num_samples`` episodes at the same time; with ``request.keep`` until so
        many have ended.

        A sample that an infrastructure failure ended is an entry of ``Group.errors``; it has no
        reward. Raises InfrastructureError where none is left, ActorLostError where the engine is
        down (somebody else has to play the group).
        """
        outcomes = await first_to_end(
            [
                partial(self._episode, request, sample_id, self._generate, self._search)
                for sample_id in range(request.num_samples)
            ],
            keep=request.keep or request.num_samples,
        )
        return self._group(request, outcomes)

    def _group(self, request: RolloutRequest, outcomes: Sequence[Trajectory | str]) -> Group:
        trajectories = tuple(o for o in outcomes if isinstance(o, Trajectory))
        errors = tuple(o for o in outcomes if isinstance(o, str))
        if self._engine.failure is not None:
            raise ActorLostError(f"the engine is down: {self._engine.failure!r}")
        if not trajectories:
            raise InfrastructureError(f"all {len(errors)} samples failed: {errors[0]}")
        self._rounds += sum(len(t.rounds) for t in trajectories)
        self._retrieve_s += sum(t.seconds["retrieve"] for t in trajectories)
        return Group(
            group_id=request.group_id,
            question=request.question,
            trajectories=trajectories,
            admission_version=request.admission_version,
            errors=errors,
            aborted=request.num_samples - len(outcomes),
        )

    async def rollout_wave(self, requests: Sequence[RolloutRequest], seed: int) -> list[Group]:
        """Play the episodes of all requests in lockstep: two engines with the same weights give the
        same groups, to the last bit. Raises what `rollout` raises, for the wave as a whole."""
        await self._engine.set_seed(seed)
        seats = [(request, i) for request in requests for i in range(request.num_samples)]
        lockstep = Lockstep(
            len(seats), self._generate_all, cast("BatchSearch", self._search).search_all
        )
        outcomes = await asyncio.gather(
            *(
                self._seated(lockstep, place, request, sample_id)
                for place, (request, sample_id) in enumerate(seats)
            )
        )
        played = iter(outcomes)
        return [self._group(r, [next(played) for _ in range(r.num_samples)]) for r in requests]

    async def _seated(
        self, lockstep: Lockstep, place: int, request: RolloutRequest, sample_id: int
    ) -> Trajectory | str:
        try:
            return await self._episode(
                request,
                sample_id,
                partial(lockstep.generate, place),
                partial(lockstep.search, place),
            )
        finally:
            lockstep.leave(place)

    async def update_weights(
        self, tensors: Mapping[str, np.ndarray], version: int
    ) -> WeightReceipt:
        """Load new weights between two steps; running episodes go on with them."""
        await self._engine.start_weight_update()
        await self._engine.receive_weights({"tensors": tensors})
        return await self._engine.finish_weight_update(version)

    async def probe(self, token_ids: Sequence[int]) -> Probe:
        """Log-probabilities of ``token_ids``, for the proof of a publish."""
        return await self._engine.probe([int(token) for token in token_ids])

    # The life cycle that vLLM's own transports drive from inside the learner (GPU).

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """See `Engine.init_weight_transfer`."""
        await self._engine.init_weight_transfer(init_info)

    async def start_weight_update(self) -> None:
        """See `Engine.start_weight_update`."""
        await self._engine.start_weight_update()

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """See `Engine.receive_weights`."""
        await self._engine.receive_weights(update_info)

    async def finish_weight_update(self, version: int) -> WeightReceipt:
        """See `Engine.finish_weight_update`."""
        return await self._engine.finish_weight_update(version)

    def spans(self) -> list[Span]:
        """When the engine was busy, and when it took weights."""
        return self._engine.recorder.spans()

    async def stats(self) -> dict[str, float]:
        """As ``pipeline.pools.RolloutPool.stats``; also ``stall_s``, a total."""
        return {
            **{f"waiting_{pool}": float(number) for pool, number in self._waiting.items()},
            **self._engine.stats(),
            "retrieve_s": self._retrieve_s,
            "rounds": float(self._rounds),
        }

    async def _episode(
        self, request: RolloutRequest, sample_id: int, generate: Generate, search: Search
    ) -> Trajectory | str:
        early = None
        if self._judge is not None and request.purpose is Purpose.TRAIN:
            early = EarlyJudging(
                self._judge, request.question, group_id=request.group_id, sample_id=sample_id
            )
        try:
            trajectory = await play_episode(
                request.question,
                group_id=request.group_id,
                sample_id=sample_id,
                protocol=self._protocol,
                generate=partial(self._waited_for, "rollout", generate),
                search=partial(self._waited_for, "retriever", search),
                sampling=request.sampling,
                max_model_len=self._max_model_len,
                score=self._score,
                purpose=request.purpose,
                allow_search=request.allow_search,
                on_search=early.searched if early else None,
            )
            return (
                await self._waited_for("judge", early.judged, trajectory) if early else trajectory
            )
        except InfrastructureError as error:
            return f"sample {sample_id}: {error}"
        finally:
            if early:
                await early.stop()

    async def _waited_for(self, pool: str, call: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """One episode waits for an answer of ``pool``."""
        self._waiting[pool] += 1
        try:
            return await call(*args)
        finally:
            self._waiting[pool] -= 1

    async def _generate(self, prompt_ids: list[int], sampling: Sampling) -> Generation:
        return await self._engine.generate(
            prompt_ids, sampling, self._protocol.stop_strings, self._protocol.stop_token_ids
        )

    async def _generate_all(self, asked: Sequence[tuple[list[int], Sampling]]) -> list[Generation]:
        return await self._engine.generate_batch(
            asked, self._protocol.stop_strings, self._protocol.stop_token_ids
        )


async def first_to_end(
    episodes: Sequence[Callable[[], Awaitable[Trajectory | str]]], keep: int
) -> list[Trajectory | str]:
    """The outcomes, in order of the episodes, when ``keep`` trajectories have ended (or all have);
    the other episodes are cancelled. Raises the error of one that fails."""
    ended: dict[int, Trajectory | str] = {}

    async def play(number: int) -> None:
        ended[number] = await episodes[number]()
        if sum(isinstance(outcome, Trajectory) for outcome in ended.values()) == keep:
            for task in running:
                if task is not asyncio.current_task():
                    task.cancel()

    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(play(number)) for number in range(len(episodes))]
    except* Exception as errors:
        raise first_error(errors) from None
    return [ended[number] for number in sorted(ended)]


def _load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
