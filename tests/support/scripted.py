"""Scripted policies and searches for episodes, and quick ways to make data types."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.types import (
    Generation,
    Group,
    Passage,
    Question,
    RolloutRequest,
    Round,
    Sampling,
    Status,
    Trajectory,
)
from tests.support.words import WordTokenizer


def question(
    text: str = "What is the capital of Chad?",
    answers: Sequence[str] = ("N'Djamena",),
    evidence: Sequence[str] | None = ("1",),
) -> Question:
    return Question(
        id="q",
        text=text,
        answers=tuple(answers),
        evidence=None if evidence is None else tuple(evidence),
    )


def passage(doc_id: str, title: str = "Chad", text: str = "The capital is N'Djamena.") -> Passage:
    return Passage(doc_id=doc_id, title=title, text=text)


class ScriptedPolicy:
    """Says its lines one after the other and remembers what it was shown."""

    def __init__(self, tokenizer: WordTokenizer, lines: Sequence[str], version: int = 0) -> None:
        self.tokenizer, self.lines, self.version = tokenizer, list(lines), version
        self.seen: list[list[int]] = []

    async def generate(self, prompt_ids: list[int], sampling: Sampling) -> Generation:
        self.seen.append(list(prompt_ids))
        ids = self.tokenizer.encode(self.lines.pop(0))
        stopped = len(ids) <= sampling.max_round_tokens
        ids = ids[: sampling.max_round_tokens]
        return Generation(
            token_ids=np.array(ids, dtype=np.int32),
            logprobs=np.full(len(ids), -0.5, dtype=np.float32),
            versions=np.full(len(ids), self.version, dtype=np.int32),
            stopped=stopped,
        )


def search_round(
    query: str | None = "capital of Chad",
    doc_ids: Sequence[str] = (),
    *,
    reasoning: str = "",
    answer: str | None = None,
    version: int = 0,
    num_tokens: int = 2,
) -> Round:
    return Round(
        context_ids=np.array([1], dtype=np.int32),
        token_ids=np.arange(num_tokens, dtype=np.int32),
        logprobs=np.full(num_tokens, -0.5, dtype=np.float32),
        versions=np.full(num_tokens, version, dtype=np.int32),
        text="",
        reasoning=reasoning,
        query=None if answer is not None else query,
        answer=answer,
        passages=tuple(passage(d) for d in doc_ids),
    )


def trajectory(
    *rounds: Round,
    asked: Question | None = None,
    reward: float = 1.0,
    group_id: int = 0,
    sample_id: int = 0,
) -> Trajectory:
    return Trajectory(
        question=asked or question(),
        group_id=group_id,
        sample_id=sample_id,
        rounds=rounds,
        status=Status.ANSWERED if rounds[-1].answer is not None else Status.NO_ACTION,
        reward=reward,
    )


def played_group(
    request: RolloutRequest, rewards: Sequence[float], version: int, query: str = "where"
) -> Group:
    """What a pool answers to ``request``: one search and an answer a sample."""
    return Group(
        group_id=request.group_id,
        question=request.question,
        trajectories=tuple(
            trajectory(
                search_round(query, ["1"], version=version),
                search_round(answer="x", version=version),
                asked=request.question,
                reward=reward,
                group_id=request.group_id,
                sample_id=i,
            )
            for i, reward in enumerate(rewards)
        ),
        admission_version=request.admission_version,
    )
