"""A language model as judge: asks, believes only verdicts, remembers them.

Each distinct (question, history, round) is asked once: equal asks under way share an answer, and
answers are kept in the cache. An answer that is no verdict is asked again; a round for which none
comes has no verdict (``None``), never 0.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.judging.cache import VerdictCache, cache_key
from pipeline.judging.chat import Chat, ChatError, Reply, Usage
from pipeline.judging.combine import Rule, combine
from pipeline.judging.costs import MODEL_COSTS, MODEL_EVENTS
from pipeline.judging.prompt import JudgePrompt, Message
from pipeline.judging.verdict_form import VerdictError, parse_verdicts, verdict_schema
from pipeline.types import Purpose, Trajectory, Verdict

__all__ = ["AskingConfig", "LLMJudge"]

log = logging.getLogger(__name__)
_RETRY_TEMPERATURE = 0.7  # a greedy model would give the same bad answer again


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingConfig:
    """How a model is asked."""

    together: bool = False  # all rounds of a trajectory in one call
    temperature: float = 0.0
    samples: int = 1
    combine: Rule = "majority"
    max_tokens: int = 512  # of an answer
    max_attempts: int = 3
    concurrency: int = 0  # most calls under way; 0: no limit


class LLMJudge:
    """Judges with a ``Chat``. ``secret`` makes the marks around traces unguessable."""

    def __init__(
        self,
        chat: Chat,
        prompt: JudgePrompt,
        asking: AskingConfig,
        usage: Usage,
        *,
        secret: bytes,
        cache: VerdictCache | None = None,
    ) -> None:
        self._chat, self._prompt, self._asking = chat, prompt, asking
        self._usage, self._secret, self._cache = usage, secret, cache
        self._under_way: dict[bytes, asyncio.Future[list[Verdict] | None]] = {}
        self._counts: Counter[str] = Counter()
        self._places: AbstractAsyncContextManager[Any] = (
            asyncio.Semaphore(asking.concurrency) if asking.concurrency else nullcontext()
        )
        self._why_not = ""

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """For each trajectory one verdict a search round, ``None`` where none came.

        Raises BudgetError where the budget is spent (unless it degrades), UserError for what no
        retry mends, InfrastructureError where the model itself is lost.
        """
        return list(await asyncio.gather(*(self._judge_one(t) for t in trajectories)))

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        """The verdict on the last search round alone. Raises as `judge` does."""
        return await self._judge_round(trajectory, len(trajectory.search_rounds))

    async def ready(self) -> None:
        """Prove that the model answers. Raises ChatError or UserError where it does not."""
        await self._chat.ready()

    async def close(self) -> None:
        """Let go of the model and the cache. Nobody waits for what is still asked."""
        for task in self._under_way.values():
            task.cancel()
        await self._chat.close()
        if self._cache is not None:
            self._cache.close()

    def stats(self) -> dict[str, float]:
        """Totals: those of ``Usage``, ``cache_hits``, ``bad_answers`` (no verdicts),
        ``failed_calls`` and ``over_budget`` (asks that were not made)."""
        counted = self._usage.totals + self._counts
        return {name: float(counted[name]) for name in (*MODEL_COSTS, *MODEL_EVENTS)}

    def why_not(self) -> str:
        """See ``JudgeBackend``."""
        return self._why_not

    async def _judge_one(self, trajectory: Trajectory) -> tuple[Verdict | None, ...]:
        rounds = len(trajectory.search_rounds)
        if not rounds:
            return ()
        if self._asking.together:
            return await self._sampled(
                trajectory, partial(self._prompt.ask_all, trajectory), rounds
            )
        return tuple(
            await asyncio.gather(*(self._judge_round(trajectory, n) for n in range(1, rounds + 1)))
        )

    async def _judge_round(self, trajectory: Trajectory, number: int) -> Verdict | None:
        (verdict,) = await self._sampled(
            trajectory, partial(self._prompt.ask_round, trajectory, number), None
        )
        return verdict

    async def _sampled(
        self, trajectory: Trajectory, ask: Callable[[bytes], list[Message]], rounds: int | None
    ) -> tuple[Verdict | None, ...]:
        """``asking.samples`` answers to one ask, combined round by round."""
        keep = trajectory.purpose is not Purpose.CANARY
        answers = await asyncio.gather(
            *(self._once(ask, rounds, number, keep) for number in range(self._asking.samples))
        )
        nothing: list[Verdict | None] = [None] * (rounds or 1)
        columns = zip(*(answer or nothing for answer in answers), strict=True)
        if len(answers) == 1:
            return tuple(verdict for (verdict,) in columns)
        return tuple(combine(column, self._asking.combine) for column in columns)

    async def _once(
        self, ask: Callable[[bytes], list[Message]], rounds: int | None, sample: int, keep: bool
    ) -> list[Verdict] | None:
        """One answer, from the cache or from an equal ask under way where there is one."""
        if not keep:
            return await self._asked(ask(self._secret), rounds)
        asking = self._asking
        key = cache_key(
            self._chat.model,
            self._prompt.fingerprint(),
            ask(b""),  # the mark follows from the question: it adds nothing
            rounds,
            asking.temperature,
            sample,
        )
        known = self._cache.get(key) if self._cache is not None else None
        if known is not None:
            self._counts["cache_hits"] += rounds or 1
            return known
        if key in self._under_way:
            self._counts["cache_hits"] += rounds or 1
            return await asyncio.shield(self._under_way[key])
        task = asyncio.ensure_future(self._learn(key, ask(self._secret), rounds))
        self._under_way[key] = task
        task.add_done_callback(lambda done: self._under_way.pop(key))
        return await asyncio.shield(task)  # others may be waiting for it

    async def _learn(
        self, key: bytes, messages: Sequence[Message], rounds: int | None
    ) -> list[Verdict] | None:
        verdicts = await self._asked(messages, rounds)
        if verdicts is not None and self._cache is not None:
            self._cache.put(key, verdicts, f"{self._chat.model} {self._prompt.version}")
        return verdicts

    async def _asked(self, messages: Sequence[Message], rounds: int | None) -> list[Verdict] | None:
        asking, limit = self._asking, self._prompt.rationale_chars
        for attempt in range(asking.max_attempts):
            reply = await self._reply(
                messages,
                schema=verdict_schema(rounds, limit),
                temperature=max(asking.temperature, _RETRY_TEMPERATURE if attempt else 0.0),
                max_tokens=asking.max_tokens * (rounds or 1),
            )
            if reply is None:
                return None
            try:
                return parse_verdicts(reply.text, rounds, limit)
            except VerdictError as error:
                self._counts["bad_answers"] += 1
                self._why_not = f"an answer is no verdict ({error}): {reply.text[:80]!r}"
                log.info("a judge's answer is no verdict (%s): %.200r", error, reply.text)
        return None

    async def _reply(self, messages: Sequence[Message], **how: Any) -> Reply | None:
        """One call. What it costs is known before the next one takes its place."""
        async with self._places:
            if not self._usage.allows_more():
                self._counts["over_budget"] += 1
                return None
            began = time.monotonic()
            try:
                reply = await self._chat.complete(messages, **how)
            except ChatError as error:
                self._counts["failed_calls"] += 1
                self._why_not = str(error)
                log.warning("a judge gave no answer: %s", error)
                return None
            self._usage.add(reply, time.monotonic() - began)
            return reply
