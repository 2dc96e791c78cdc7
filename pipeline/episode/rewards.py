"""Outcome rewards: exact match (and F1 for reports) after SQuAD normalisation."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.types import Question, Status

__all__ = ["OutcomeReward", "exact_match", "f1_score", "normalize_answer"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD normalisation: lower-case, drop punctuation, drop articles, squeeze spaces.

    Source: the SQuAD v1.1 evaluation script (Rajpurkar et al., 2016).

    >>> normalize_answer("The  Eiffel Tower.")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str | None, golden_answers: Sequence[str]) -> bool:
    """Whether ``answer`` equals any golden answer after normalisation; ``None`` never does.

    >>> exact_match("a Paris", ["Paris"]), exact_match(None, ["Paris"])
    (True, False)
    """
    if answer is None:
        return False
    normalized = normalize_answer(answer)
    return any(normalized == normalize_answer(golden) for golden in golden_answers)


def f1_score(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Best token F1 in [0, 1] over the golden answers, after normalisation.

    >>> round(f1_score("Paris France", ["Paris"]), 3)
    0.667
    """
    if answer is None:
        return 0.0
    return max(_token_f1(normalize_answer(answer), normalize_answer(g)) for g in golden_answers)


def _token_f1(predicted: str, golden: str) -> float:
    predicted_tokens, golden_tokens = predicted.split(), golden.split()
    common = sum((Counter(predicted_tokens) & Counter(golden_tokens)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_tokens), common / len(golden_tokens)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeReward:
    """1 for an exact match, 0 for a wrong answer, ``no_answer_reward`` where none was given."""

    no_answer_reward: float = 0.0

    def __post_init__(self) -> None:
        if self.no_answer_reward > 0:
            raise ValueError("no_answer_reward must not be positive: silence would pay")

    def __call__(self, question: Question, status: Status, answer: str | None) -> float:
        """The reward of a trajectory that ended with ``status`` and ``answer``."""
        if status is not Status.ANSWERED:
            return self.no_answer_reward
        return float(exact_match(answer, question.answers))
