"""Questions with their plans: what an episode is scripted from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.types import Question

__all__ = ["Hop", "PlannedQuestion", "label", "plan_questions"]

_LABELS = {
    "city_country": "country",
    "place_country": "country",
    "city_population": "city population",
    "city_timezone": "time zone",
    "work_year": "year",
}


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a plan: ``query`` asks for ``relation`` of ``subject``; the passage
    ``evidence`` says that it is ``answer``."""

    relation: str
    subject: str
    answer: str
    evidence: str
    query: str


@dataclass(frozen=True, slots=True)
class PlannedQuestion:
    """A question and the hops that answer it, in order."""

    question: Question
    hops: tuple[Hop, ...]

    @property
    def answer(self) -> str:
        """What a good episode answers."""
        return self.hops[-1].answer

    @property
    def goal(self) -> str:
        """The relation asked for in the end."""
        return self.hops[-1].relation


def label(relation: str) -> str:
    """How reasoning names a relation.

    >>> label("highest_point"), label("city_country")
    ('highest point', 'country')
    """
    return _LABELS.get(relation, relation.replace("_", " "))


def plan_questions(questions: Iterable[Question], where: str) -> list[PlannedQuestion]:
    """Questions with the plans in their metadata; ``where`` names their file.

    Raises:
        UserError: for a question without a usable ``metadata.plan``.
    """
    return [_planned(question, where) for question in questions]


def _planned(question: Question, where: str) -> PlannedQuestion:
    try:
        hops = tuple(
            Hop(**{key: str(hop[key]) for key in Hop.__dataclass_fields__})
            for hop in question.metadata["plan"]
        )
    except (KeyError, TypeError) as error:
        hops = ()
        problem = repr(error)
    else:
        problem = "it is empty"
    if not hops:
        raise UserError(
            f"{where}: no scripted episode can be made of question {question.id!r}: its "
            f"metadata.plan needs hops with {', '.join(Hop.__dataclass_fields__)} ({problem})"
        )
    return PlannedQuestion(question=question, hops=hops)
