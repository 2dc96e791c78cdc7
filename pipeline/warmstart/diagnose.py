"""What went wrong in a failed trajectory: one kind of mistake each, for the model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from pipeline.episode.rewards import normalize_answer
from pipeline.types import Round, Status, Trajectory
from pipeline.warmstart.script import GIVE_UP_ANSWER

__all__ = ["Mistake", "diagnose", "mistake_table", "redundant_search_share"]


class Mistake(StrEnum):
    """Kinds of mistake, first match counts (see :func:`diagnose`)."""

    GAVE_UP = "gave up"
    PREMATURE = "premature answer"
    UNSUPPORTED = "unsupported guess"
    OFF_RELATION = "off-relation fact"
    REDUNDANT = "rounds spent on redundant searches"
    FAILED_SEARCH = "rounds spent on searches that failed"
    MISREAD = "misread evidence"
    MALFORMED = "no valid action"


def diagnose(trajectory: Trajectory) -> Mistake | None:
    """The mistake of a trajectory, ``None`` where it is correct.

    A wrong answer: ``unknown`` gave up; an entity that the plan starts from or leads through is
    premature; one that no retrieved passage holds is an unsupported guess; with evidence still
    missing it is another relation's fact, else the evidence was misread. Without an answer: the
    rounds went to searches that brought no new passage, or no new evidence.
    """
    if trajectory.correct:
        return None
    if trajectory.status is Status.ANSWERED:
        return _wrong_answer(trajectory)
    if trajectory.status is not Status.OUT_OF_ROUNDS:
        return Mistake.MALFORMED
    return Mistake.REDUNDANT if any(_redundant(trajectory)) else Mistake.FAILED_SEARCH


def _wrong_answer(trajectory: Trajectory) -> Mistake:
    answer = normalize_answer(trajectory.answer or "")
    plan = trajectory.question.metadata.get("plan", ())
    on_the_way = {normalize_answer(str(hop["subject"])) for hop in plan}
    if answer == normalize_answer(GIVE_UP_ANSWER):
        return Mistake.GAVE_UP
    if answer in on_the_way:
        return Mistake.PREMATURE
    passages = [p for r in trajectory.search_rounds for p in r.passages]
    if not any(answer in normalize_answer(f"{p.title} {p.text}") for p in passages):
        return Mistake.UNSUPPORTED
    missing = set(trajectory.question.evidence or ()) - {p.doc_id for p in passages}
    return Mistake.OFF_RELATION if missing else Mistake.MISREAD


def _redundant(trajectory: Trajectory) -> list[bool]:
    """Per search round, whether it brought no passage that was new to the trajectory."""
    seen: set[str] = set()
    redundant = []
    for search_round in trajectory.search_rounds:
        redundant.append(_doc_ids(search_round) <= seen)
        seen |= _doc_ids(search_round)
    return redundant


def _doc_ids(search_round: Round) -> set[str]:
    return {p.doc_id for p in search_round.passages}


def redundant_search_share(trajectories: Iterable[Trajectory]) -> float:
    """Share of all search rounds with no passage that their trajectory had not seen."""
    redundant = [r for t in trajectories for r in _redundant(t)]
    return sum(redundant) / max(1, len(redundant))


def mistake_table(trajectories: Iterable[Trajectory]) -> dict[Mistake, float]:
    """Share of each kind among the mistakes, most frequent first."""
    kinds = Counter(m for t in trajectories if (m := diagnose(t)) is not None)
    return {kind: count / kinds.total() for kind, count in kinds.most_common()}
