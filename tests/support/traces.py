"""Labelled traces for tests of judges: a two-hop question and what an agent may do with it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.episode.evidence import judge_by_evidence
from pipeline.judging.traces import LabelledTrace, make_trajectory
from pipeline.types import Passage, Question, Trajectory

COUNTRY = Passage(doc_id="e1", title="Nakuru", text="Nakuru is a city in Kenya.")
CAPITAL = Passage(doc_id="e2", title="Kenya", text="The capital of Kenya is Nairobi.")
OTHER = Passage(doc_id="x1", title="Nakuru", text="Nakuru has 570,674 inhabitants.")
QUESTION = Question(
    id="q1",
    text="What is the capital of the country where Nakuru lies?",
    answers=("Nairobi",),
    evidence=("e1", "e2"),
    metadata={
        "plan": [
            {"relation": "city_country", "subject": "Nakuru", "answer": "Kenya", "evidence": "e1"},
            {"relation": "capital", "subject": "Kenya", "answer": "Nairobi", "evidence": "e2"},
        ]
    },
)
GOOD = ("Next: country of Nakuru.", "In which country is Nakuru?", (COUNTRY, OTHER))
NEXT = ("The country is Kenya. Next: capital of Kenya.", "capital of Kenya?", (CAPITAL,))
FAILED = ("Next: country of Nakuru.", "Nakuru", (OTHER,))
GUESS = ("Maybe Uganda. Next: country of Nakuru.", "In which country is Nakuru?", (COUNTRY,))
LATE = ("The capital is Nairobi. Once more.", "Nairobi?", (OTHER,))

Row = tuple[str, str, Sequence[Passage]]


def trajectory_of(*rows: Row, number: int = 0) -> Trajectory:
    """A trajectory of these search rounds, answered."""
    return make_trajectory(QUESTION, rows, "Nairobi", number=number)


def trace_of(*rows: Row, number: int = 0) -> LabelledTrace:
    """The same, labelled by the rule."""
    trajectory = trajectory_of(*rows, number=number)
    return LabelledTrace(
        id=f"q1/{number}", trajectory=trajectory, labels=judge_by_evidence(trajectory)
    )


def traces() -> list[LabelledTrace]:
    """One of each kind."""
    played = [(GOOD, NEXT), (FAILED, GOOD, NEXT), (GUESS, NEXT), (GOOD, NEXT, LATE), (GOOD, GOOD)]
    return [trace_of(*rows, number=n) for n, rows in enumerate(played)]
