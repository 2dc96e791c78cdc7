"""The bad habits, and which questions they befall.

A habit is the *majority* action of the warm-started policy where it applies, decided at one
early token, with the good action close behind: then greedy decoding shows it, sampling avoids it
often enough, and reinforcement learning has something to find. So that one habit can be a
majority, each belongs to relations: a policy that, say, always gives up on anthems and mixes up
land area and total area. Relations that lead to another hop stay clean.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.warmstart.plans import Hop, PlannedQuestion, label

__all__ = ["Habit", "HabitBook"]

_SHARED_SUBJECTS = 0.3  # share of subjects two relations must have in common to be mixed up


class Habit(StrEnum):
    """What a bad episode does."""

    PREMATURE = "premature"  # answers with the entity at hand, before the last hop
    REDUNDANT = "redundant"  # asks the same query again, and again
    OFF_RELATION = "off_relation"  # looks up another relation of the right subject and answers it
    VAGUE = "vague"  # searches for the bare subject first, which rarely finds the evidence
    GIVE_UP = "give_up"  # answers "unknown"
    GUESS = "guess"  # answers from memory, without evidence


@dataclass(frozen=True, slots=True)
class HabitBook:
    """Which habit befalls which question, and the habits' fixed words.

    ``cells`` maps the relation asked for to a habit; the others have none. ``confused`` maps a
    relation to the one it is mixed up with; ``guess`` maps a relation to its most frequent
    answer; ``known`` holds every hop of the questions, by relation and subject; ``template`` is
    how a relation is asked, with ``{}`` for the subject.
    """

    cells: Mapping[str, Habit]
    confused: Mapping[str, str]
    guess: Mapping[str, str]
    known: Mapping[tuple[str, str], Hop]
    template: Mapping[str, str]

    def habit_of(self, question: PlannedQuestion) -> Habit | None:
        """The habit that befalls ``question``, if any."""
        return self.cells.get(question.goal)

    def confusion(self, hop: Hop) -> Hop | None:
        """What is looked up in place of ``hop``; its answer is empty where no question says it."""
        relation = self.confused.get(hop.relation)
        if relation is None:
            return None
        unknown = Hop(relation, hop.subject, "", "", self.template[relation].format(hop.subject))
        return self.known.get((relation, hop.subject), unknown)

    @classmethod
    def write(
        cls, questions: Sequence[PlannedQuestion], *, shares: Mapping[str, float], seed: int
    ) -> HabitBook:
        """Deal habits to relations so that each befalls about its share of the questions.

        ``shares`` maps a habit's name to that share; what is missing to 1, relations that lead to
        another hop included, stays without a habit.
        """
        hops = [hop for question in questions for hop in question.hops]
        bridges = {hop.relation for question in questions for hop in question.hops[:-1]}
        count = Counter(q.goal for q in questions if q.goal not in bridges)
        confused = _confusions(hops)
        dealt = _deal(count, shares, len(questions), seed)
        return cls(
            cells={relation: Habit(habit) for relation, habit in dealt.items()},
            confused=confused,
            guess=_frequent_answers(hops),
            known={(h.relation, h.subject): h for h in hops},
            template=_templates(hops),
        )


def _deal(
    count: Mapping[str, int], shares: Mapping[str, float], total: int, seed: int
) -> dict[str, str]:
    """Deal the keys of ``count``, frequent ones first: each goes to whoever is furthest below
    their share of ``total``, in the order of ``shares`` where equal."""
    keys = sorted(count)
    random.Random(seed).shuffle(keys)
    keys.sort(key=lambda key: -count[key])
    wanted = {name: share * total for name, share in shares.items()}
    wanted[""] = sum(count.values()) - sum(wanted.values())  # nobody
    dealt = {}
    for key in keys:
        receiver = max(wanted, key=wanted.__getitem__)
        wanted[receiver] -= count[key]
        if receiver:
            dealt[key] = receiver
    return dealt


def _confusions(hops: Sequence[Hop]) -> dict[str, str]:
    """Mix each relation up with one that its subjects have too: the next in the alphabet,
    around a ring."""
    subjects: dict[str, set[str]] = defaultdict(set)
    for hop in hops:
        subjects[hop.relation].add(hop.subject)
    relations = sorted(subjects)
    confused = {}
    for index, relation in enumerate(relations):
        ring = relations[index + 1 :] + relations[:index]
        enough = _SHARED_SUBJECTS * len(subjects[relation])
        near = [r for r in ring if len(subjects[r] & subjects[relation]) >= enough]
        if near:
            confused[relation] = near[0]
    return confused


def _frequent_answers(hops: Sequence[Hop]) -> dict[str, str]:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for hop in hops:
        answers[hop.relation][hop.answer] += 1
    return {r: min(c, key=lambda a: (-c[a], a)) for r, c in answers.items()}


def _templates(hops: Sequence[Hop]) -> dict[str, str]:
    """The first query of each relation that contains its subject once, without braces."""
    templates: dict[str, str] = {}
    for hop in hops:
        if hop.query.count(hop.subject) == 1 and "{" not in hop.query:
            templates.setdefault(hop.relation, hop.query.replace(hop.subject, "{}"))
    for hop in hops:
        templates.setdefault(hop.relation, f"{label(hop.relation)} of {{}}")
    return templates
