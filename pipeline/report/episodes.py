"""Whole trajectories as the page prints them, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.credit.contribution import contributions
from pipeline.report.data import ShownTrajectory
from pipeline.report.verdicts import VerdictsView, verdicts_view
from pipeline.types import Passage, Round, Status, Verdict

if TYPE_CHECKING:
    from pipeline.credit import Algorithm, OppositeVerdict

__all__ = ["EpisodeView", "PassageView", "QuestionView", "RoundView", "question_views"]

_PHASES = {
    "before": "before training",
    "training": "during training",
    "after": "after training",
}
_ENDINGS = {
    Status.ANSWERED: "",
    Status.NO_ACTION: "gave up: neither a search nor an answer",
    Status.TRUNCATED: "ran into the length limit",
    Status.OUT_OF_ROUNDS: "ran out of rounds while still searching",
}


@dataclass(frozen=True, slots=True)
class PassageView:
    """A passage, whether it is evidence, and whether this round was the first to bring it."""

    title: str
    text: str
    is_evidence: bool
    is_new: bool


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round. ``None`` stands for "not measured"; ``opposite`` is what the opposite verdict
    would have done, ``lack`` what the want of one did; ``push`` is the advantage's share of the
    largest on the page, for the bar, in [-1, 1]."""

    number: int
    reasoning: str
    query: str | None
    answer: str | None
    raw: str  # the words as sampled, where neither query nor answer could be read
    passages: tuple[PassageView, ...]
    searched: bool
    redundant: bool
    is_search_round: bool
    utility: float | None
    correctness: float | None
    contribution: float | None
    rationale: str
    opposite: OppositeVerdict | None
    lack: str
    weight: float | None
    advantage: float | None
    push: float


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """One trajectory."""

    phase: str
    phase_label: str
    won: bool
    answer: str | None
    ending: str
    advantage: float | None
    reward: float
    judged: bool
    judged_for_report: bool
    verdicts: VerdictsView
    rounds: tuple[RoundView, ...]


@dataclass(frozen=True, slots=True)
class QuestionView:
    """A question and the trajectories shown of it."""

    text: str
    hops: int | None
    answers: tuple[str, ...]
    oracle: tuple[str, ...]  # the sub-questions that find all evidence, where known
    episodes: tuple[EpisodeView, ...]


def question_views(
    shown: Sequence[ShownTrajectory], algorithm: Algorithm | None = None
) -> list[QuestionView]:
    """Neighbouring trajectories of one question under one heading. ``algorithm`` is the one that
    made their credit."""
    scale = _largest_advantage(shown)
    views = []
    for _, members in groupby(shown, key=lambda s: s.trajectory.question.id):
        of_question = list(members)
        question = of_question[0].trajectory.question
        plan = question.metadata.get("plan") or ()
        views.append(
            QuestionView(
                text=question.text,
                hops=question.hops,
                answers=question.answers,
                oracle=tuple(str(hop["query"]) for hop in plan if "query" in hop),
                episodes=tuple(_episode(s, scale, algorithm) for s in of_question),
            )
        )
    return views


def _episode(shown: ShownTrajectory, scale: float, algorithm: Algorithm | None) -> EpisodeView:
    trajectory = shown.trajectory
    verdicts = verdicts_view(shown, algorithm)
    return EpisodeView(
        phase=shown.phase,
        phase_label=_PHASES[shown.phase],
        won=trajectory.correct,
        answer=trajectory.answer,
        ending=_ENDINGS[trajectory.status],
        advantage=None if shown.credit is None else float(shown.credit.advantage),
        reward=trajectory.reward,
        judged=any(r.verdict is not None for r in trajectory.rounds),
        judged_for_report=shown.judged_for_report,
        verdicts=verdicts,
        rounds=_rounds(shown, scale, algorithm, verdicts),
    )


def _rounds(
    shown: ShownTrajectory, scale: float, algorithm: Algorithm | None, verdicts: VerdictsView
) -> tuple[RoundView, ...]:
    trajectory, credit = shown.trajectory, shown.credit
    evidence = frozenset(trajectory.question.evidence or ())
    num_search = len(trajectory.search_rounds)
    seen: set[str] = set()
    views = []
    for t, played in enumerate(trajectory.rounds):
        is_search = t < num_search
        verdict = played.verdict
        advantage = None if credit is None else float(credit.round_advantages[t])
        passages = _passages(played.passages, evidence, seen)
        searched = played.query is not None and (is_search or bool(played.passages))
        views.append(
            RoundView(
                number=t + 1,
                reasoning=played.reasoning,
                query=played.query,
                answer=played.answer,
                raw=_raw(played),
                passages=passages,
                searched=searched,
                redundant=searched and not any(p.is_new for p in passages),
                is_search_round=is_search,
                utility=None if verdict is None else verdict.utility,
                correctness=None if verdict is None else verdict.correctness,
                contribution=None if verdict is None else _contribution(verdict, algorithm),
                rationale="" if verdict is None else verdict.rationale,
                opposite=verdicts.opposites[t] if is_search else None,
                lack=verdicts.lacks[t] if is_search else "",
                weight=float(credit.weights[t]) if credit is not None and is_search else None,
                advantage=advantage,
                push=0.0 if advantage is None else advantage / scale,
            )
        )
        seen |= {p.doc_id for p in played.passages}
    return tuple(views)


def _contribution(verdict: Verdict, algorithm: Algorithm | None) -> float:
    """By the algorithm's signal."""
    if algorithm is None:
        return verdict.contribution
    signal = algorithm.config.signal
    return float(contributions([verdict], signal)[0])  # type: ignore[arg-type]  # checked when built


def _passages(
    passages: Sequence[Passage], evidence: frozenset[str], seen: set[str]
) -> tuple[PassageView, ...]:
    return tuple(
        PassageView(p.title, p.text, p.doc_id in evidence, p.doc_id not in seen) for p in passages
    )


def _raw(played: Round) -> str:
    return played.text if played.query is None and played.answer is None else ""


def _largest_advantage(shown: Sequence[ShownTrajectory]) -> float:
    """For the bars: the largest absolute round advantage on the page, 1 where there is none."""
    values = [
        abs(float(a)) for s in shown if s.credit is not None for a in s.credit.round_advantages
    ]
    return max(values, default=0.0) or 1.0
