"""Search episodes in the rollout process of TRL's AsyncGRPOTrainer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

from trl.experimental.async_grpo.async_rollout_worker import (
    AsyncRolloutWorker,
    RolloutGroup,
    RolloutSample,
    TrainingSequence,
    TurnRecord,
    _AsyncRolloutLoop,
    _chain_to_sequences,
)

from benchmarks.peer_task import SearchTask
from pipeline.config_checks import to_config
from pipeline.overrides import compose_config

__all__ = ["SearchWorker"]


class SearchLoop(_AsyncRolloutLoop):
    """Plays our protocol, token in, token out; queries that come while a search goes on are the
    next search together. Prompts are the questions."""

    _provides_rollout_reward = True

    def __init__(self, *, settings: Sequence[str], processing_class: Any, **options: Any) -> None:
        super().__init__(processing_class=processing_class, **options)
        self.reward_func_names.append("exact_match")
        self._task = SearchTask(to_config(compose_config(settings)), processing_class)
        self._asked: list[tuple[str, asyncio.Future[list[int]]]] = []
        self._searching: asyncio.Task[None] | None = None

    async def _generate_one(
        self, prompt: Any, tool_dict: Any, tools: Any, group_id: int = 0
    ) -> tuple[list[Any], list[int], list[TrainingSequence], int, int, float]:
        began = time.monotonic()
        episode = self._task.episode(prompt)
        turns: list[TurnRecord] = []
        while episode.going_on:
            context = episode.context
            token_ids, log_probs = await self._generate_one_turn(context)
            turns.append(TurnRecord(context, token_ids, log_probs))
            query = self._task.take(episode, token_ids)
            if query is not None:
                self._task.observe(episode, await self._search(query))
        sequences, tally = _chain_to_sequences(turns, uuid.uuid4().hex, self._fork_threshold_tokens)
        self._push_rollout_metrics(
            turns=len(turns),
            sequences=len(sequences),
            completion_ids=episode.completion_ids,
            tally=tally,
            loop_exhausted=False,
            duration_s=time.monotonic() - began,
        )
        return [], episode.completion_ids, sequences, 0, 0, episode.reward

    async def _search(self, query: str) -> list[int]:
        found: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._asked.append((query, found))
        if self._searching is None:
            self._searching = asyncio.create_task(self._search_all())
        return await found

    async def _search_all(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            found = await asyncio.to_thread(self._task.search, [query for query, _ in asked])
            for (_, future), token_ids in zip(asked, found, strict=True):
                future.set_result(token_ids)
        self._searching = None

    async def _score_group(self, group: RolloutGroup) -> list[RolloutSample]:
        samples: list[RolloutSample] = await super()._score_group(group)
        for sample in samples:
            sample.metrics["without_signal"] = float(sample.advantage == 0.0)
        return samples


class SearchWorker(AsyncRolloutWorker):
    """Its process runs a `SearchLoop`."""

    _loop_cls = SearchLoop
