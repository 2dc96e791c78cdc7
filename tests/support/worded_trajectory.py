"""Trajectories for tests of judges: any number of search rounds, known words in each."""

from __future__ import annotations

from pipeline.judging.traces import make_trajectory
from pipeline.types import Passage, Question, Trajectory

__all__ = ["trajectory"]


def trajectory(name: str, *rounds: str, evidence: tuple[str, ...] | None = None) -> Trajectory:
    """A trajectory about ``name``. A round is what its one passage says; its reasoning says "so"
    where the passage has "so" in it. Passages are numbered from 1: their ids.

    >>> [r.query for r in trajectory("x", "a", "b").search_rounds]
    ['x query 1', 'x query 2']
    """
    return make_trajectory(
        Question(id=name, text=f"What of {name}?", answers=("none",), evidence=evidence),
        [
            (
                f"{name} thinks {number} {'so' if 'so' in text.split() else 'perhaps'}",
                f"{name} query {number}",
                [Passage(doc_id=str(number), title=f"{name} title {number}", text=text)],
            )
            for number, text in enumerate(rounds, start=1)
        ],
        "an answer",
    )
