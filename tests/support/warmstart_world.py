"""A made-up world for the warm start's tests: towns, lands, capitals, rivers and mayors."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pipeline.types import Passage, Question
from pipeline.warmstart.habits import Habit, HabitBook
from pipeline.warmstart.plans import Hop, PlannedQuestion
from pipeline.warmstart.script import rephrased_query, vague_query

__all__ = ["World"]

_SYLLABLES = ("ba", "den", "ko", "lur", "mi", "no", "ra", "sel", "ta", "vor", "wen", "zu")
_ASKED = {
    "city_country": "What is the country of {}?",
    "capital": "What is the capital of {}?",
    "river": "What is the river of {}?",
    "mayor": "Who is the mayor of {}?",
}


class World:
    """``size`` lands, each with a town, a capital with a mayor, and a river.

    ``passages`` by id, ``hops`` by (relation, subject), ``questions`` with 1, 2 and 3 hops.
    """

    def __init__(self, size: int = 8, seed: int = 0) -> None:
        rng = random.Random(seed)
        self._names: set[str] = set()
        self.passages: dict[str, Passage] = {}
        self.hops: dict[tuple[str, str], Hop] = {}
        self.questions: list[PlannedQuestion] = []
        for _ in range(size):
            land, town, capital, river, mayor = (self._name(rng) for _ in range(5))
            home = self._fact("city_country", town, land)
            city = self._fact("capital", land, capital)
            water = self._fact("river", land, river)
            leader = self._fact("mayor", capital, mayor)
            self._ask(f"What is the capital of {land}?", city)
            self._ask(f"Tell me the river of {land}.", water)
            self._ask(f"What is the river of the country of {town}?", home, water)
            self._ask(f"Who is the mayor of the capital of {land}?", city, leader)
            self._ask(f"Who leads the capital of the country of {town}?", home, city, leader)

    def search(self, query: str) -> tuple[Passage, ...]:
        """The passage that answers the query among two others; the bare subject finds others."""
        for hop in self.hops.values():
            if query in (hop.query, rephrased_query(hop)):
                wanted = self.passages[hop.evidence]
                return (wanted, *self._others(hop.evidence)[:2])
            if query == vague_query(hop):
                about = {h.evidence for h in self.hops.values() if h.subject == query}
                return tuple(p for p in self._others("") if p.doc_id not in about)[:3]
        return tuple(self.passages.values())[:3]

    def question(self, hops: int) -> PlannedQuestion:
        """The first question with so many hops."""
        return next(q for q in self.questions if len(q.hops) == hops)

    def book(self, habit: Habit | None = None, **changed: Any) -> HabitBook:
        """A habit book in which ``habit`` befalls every question."""
        fields: dict[str, Any] = {
            "cells": dict.fromkeys(_ASKED, habit) if habit else {},
            "confused": {"mayor": "river", "river": "capital", "capital": "river"},
            "guess": dict.fromkeys(_ASKED, "Atlantis"),
            "known": self.hops,
            "template": _ASKED,
        }
        return HabitBook(**{**fields, **changed})

    def texts(self) -> list[str]:
        """Text for a tokenizer."""
        questions = [q.question.text for q in self.questions]
        return [f"{p.title}: {p.text}" for p in self.passages.values()] + questions

    def doc_ids(self) -> Mapping[str, list[str]]:
        """What the retriever answers to every scripted query."""
        queries = [
            q for h in self.hops.values() for q in (h.query, rephrased_query(h), vague_query(h))
        ]
        queries += [_ASKED[r].format(h.subject) for h in self.hops.values() for r in _ASKED]
        return {q: [p.doc_id for p in self.search(q)] for q in queries}

    def _name(self, rng: random.Random) -> str:
        while (name := "".join(rng.choices(_SYLLABLES, k=3)).title()) in self._names:
            pass
        self._names.add(name)
        return name

    def _fact(self, relation: str, subject: str, answer: str) -> Hop:
        doc_id = str(len(self.passages))
        noun = relation.split("_")[-1]
        self.passages[doc_id] = Passage(
            doc_id=doc_id, title=subject, text=f"The {noun} of {subject} is {answer}."
        )
        hop = Hop(relation, subject, answer, doc_id, _ASKED[relation].format(subject))
        self.hops[relation, subject] = hop
        return hop

    def _ask(self, text: str, *hops: Hop) -> None:
        question = Question(
            id=f"q{len(self.questions)}",
            text=text,
            answers=(hops[-1].answer,),
            evidence=tuple(h.evidence for h in hops),
            metadata={"hops": len(hops), "plan": [_as_dict(h) for h in hops]},
        )
        self.questions.append(PlannedQuestion(question=question, hops=hops))

    def _others(self, doc_id: str) -> list[Passage]:
        return [p for p in self.passages.values() if p.doc_id != doc_id]


def _as_dict(hop: Hop) -> dict[str, str]:
    return {name: getattr(hop, name) for name in Hop.__dataclass_fields__}
