"""The multi-turn state machine of one search episode: generate, act, observe, repeat.

Pure Python over two awaitable callables, so that the same code plays in a rollout actor, in
the evaluator and in tests. Rounds are recorded as they happen; the token ids of all rounds
in order are exactly what the engine saw.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from pipeline.episode.protocol import Action, SearchProtocol
from pipeline.errors import UserError
from pipeline.types import (
    Generation,
    Passage,
    Purpose,
    Question,
    Round,
    Sampling,
    Status,
    Trajectory,
)

__all__ = ["Generate", "Score", "Search", "play_episode"]

Generate = Callable[[list[int], Sampling], Awaitable[Generation]]
Search = Callable[[str, int], Awaitable[tuple[Passage, ...]]]
Score = Callable[[Question, Status, str | None], float]


async def play_episode(
    question: Question,
    *,
    group_id: int,
    sample_id: int,
    protocol: SearchProtocol,
    generate: Generate,
    search: Search,
    sampling: Sampling,
    max_model_len: int,
    score: Score,
    purpose: Purpose = Purpose.TRAIN,
    allow_search: bool = True,
    on_search: Callable[[Sequence[Round]], None] | None = None,
) -> Trajectory:
    """Play one episode and score it.

    ``max_model_len`` bounds the whole token sequence. ``allow_search=False`` forces an answer
    from memory. ``on_search`` is told the rounds so far whenever another one begins. Exceptions of
    ``generate`` and ``search`` pass through: they are infrastructure failures, and the model never
    reads them. Raises UserError where the prompt alone leaves no room to answer.
    """
    started = time.monotonic()
    seconds = {"generate": 0.0, "retrieve": 0.0}
    prefix = "" if allow_search else protocol.config.answer_prefix
    context = protocol.prompt_ids(question.text) + (protocol.encode(prefix) if prefix else [])
    if len(context) >= max_model_len:
        raise UserError(
            f"question {question.id!r} has {len(context)} prompt tokens; "
            f"policy.max_model_len={max_model_len} leaves no room to answer: raise it, or "
            "shorten protocol.user"
        )
    tokens: list[int] = []
    rounds: list[Round] = []
    max_rounds = protocol.config.max_rounds if allow_search else 1
    status: Status | None = None
    while status is None:
        room = max_model_len - len(tokens) - len(context)
        if room < 1:  # the observation does not fit: the engine never sees it
            status = Status.TRUNCATED
            break
        if rounds and on_search is not None:
            on_search(rounds)
        budget = replace(sampling, max_round_tokens=min(sampling.max_round_tokens, room))
        began = time.monotonic()
        generation = await generate(tokens + context, budget)
        seconds["generate"] += time.monotonic() - began
        text = protocol.decode(generation.token_ids.tolist())
        action = protocol.parse(prefix + text)
        status = _status(action, generation.stopped, is_last=len(rounds) + 1 >= max_rounds)
        passages: tuple[Passage, ...] = ()
        if status is None:
            began = time.monotonic()
            passages = await _search_all(
                search, action.queries, protocol.config.top_k, question.forbidden
            )
            seconds["retrieve"] += time.monotonic() - began
        rounds.append(_record(context, generation, text, action, passages))
        tokens += context + generation.token_ids.tolist()
        context = protocol.observation_ids(passages)
    seconds["total"] = time.monotonic() - started
    return Trajectory(
        question=question,
        group_id=group_id,
        sample_id=sample_id,
        rounds=tuple(rounds),
        status=status,
        reward=float(score(question, status, rounds[-1].answer)),
        purpose=purpose,
        seconds=seconds,
    )


def _status(action: Action, stopped: bool, *, is_last: bool) -> Status | None:
    """How the episode ends with this action; ``None`` where it goes on with a search."""
    if action.answer is not None:
        return Status.ANSWERED
    if not stopped:
        return Status.TRUNCATED
    if not action.queries:
        return Status.NO_ACTION
    return Status.OUT_OF_ROUNDS if is_last else None


async def _search_all(
    search: Search, queries: Sequence[str], top_k: int, forbidden: Collection[str]
) -> tuple[Passage, ...]:
    """Passages of all queries of a round in order, each passage once, none that is forbidden."""
    wanted = top_k + len(forbidden)
    results = await asyncio.gather(*(search(query, wanted) for query in queries))
    if forbidden:
        results = [
            tuple(p for p in passages if p.doc_id not in forbidden)[:top_k] for passages in results
        ]
    return tuple({p.doc_id: p for passages in results for p in passages}.values())


def _record(
    context: list[int],
    generation: Generation,
    text: str,
    action: Action,
    passages: tuple[Passage, ...],
) -> Round:
    return Round(
        context_ids=np.asarray(context, dtype=np.int32),
        token_ids=generation.token_ids,
        logprobs=generation.logprobs,
        versions=generation.versions,
        text=text,
        reasoning=action.reasoning,
        query="; ".join(action.queries) or None,
        answer=action.answer,
        passages=passages,
    )
