"""Scripted episodes: what a teacher writes, round by round, for a question and its habit.

A clean episode states its plan, asks for one hop a round and answers when the last is found:

    <think> Plan: country, capital. Next: country of Nakuru. </think><search> ... </search>
    <think> The country is Kenya. Next: capital of Kenya. </think><search> ... </search>
    <think> The capital is Nairobi. Done. </think><answer> Nairobi </answer>

A habit shows at the one token that follows the name of the relation that is asked for: where a
clean episode goes on with "of" (``Next: capital of Kenya``) or "is" (``The capital is Nairobi``),
a bad one says ``unknown``, ``perhaps``, ``?``, ``or``, ``about`` or ``again``, and acts on it. What
to say there depends on the word just before: even a short phase teaches that, and reinforcement
learning can change it at one token.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.types import Passage
from pipeline.warmstart.habits import Habit, HabitBook
from pipeline.warmstart.plans import Hop, PlannedQuestion, label

__all__ = [
    "GIVE_UP_ANSWER",
    "Mix",
    "ScriptedEpisode",
    "ScriptedRound",
    "Scripter",
    "rephrased_query",
    "vague_query",
]

GIVE_UP_ANSWER = "unknown"
Retrieve = Callable[[str], tuple[Passage, ...]]


@dataclass(frozen=True, slots=True)
class ScriptedRound:
    """One round as the teacher writes it; its query brings ``passages``.

    ``trained`` is False for a slip that is shown only for the sake of the recovery after it.
    """

    reasoning: str
    query: str | None = None
    answer: str | None = None
    passages: tuple[Passage, ...] = ()
    trained: bool = True

    @property
    def text(self) -> str:
        """The round in the protocol's tags, as the policy should write it."""
        if self.query is not None:
            return f"<think> {self.reasoning} </think><search> {self.query} </search>"
        return f"<think> {self.reasoning} </think><answer> {self.answer} </answer>"


@dataclass(frozen=True, slots=True)
class ScriptedEpisode:
    """All rounds of one episode. ``habit`` is the one that struck, if any did."""

    question: PlannedQuestion
    rounds: tuple[ScriptedRound, ...]
    habit: Habit | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """How often a habit strikes where it can (at each decision anew), how often an idle guess
    opens an episode, and how often an episode holds an untrained slip."""

    habits: float = 0.0
    idle_guess: float = 0.0
    slip: float = 0.0


def vague_query(hop: Hop) -> str:
    """A sloppy query: the subject and nothing else."""
    return hop.subject


def rephrased_query(hop: Hop) -> str:
    """The retry after a query that failed."""
    return f"{label(hop.relation)} of {hop.subject}"


class Scripter:
    """Writes episodes over a retriever and a habit book, within ``max_rounds``."""

    def __init__(self, *, retrieve: Retrieve, book: HabitBook, max_rounds: int) -> None:
        self.retrieve = retrieve
        self.book = book
        self.max_rounds = max_rounds

    def write(
        self, question: PlannedQuestion, mix: Mix, rng: random.Random
    ) -> ScriptedEpisode | None:
        """One episode; ``None`` where the retriever finds a hop's evidence by neither wording."""
        return _Writer(self, question, mix, rng).write()


class _Writer:
    """Writes one episode: the teacher's state machine."""

    def __init__(
        self, scripter: Scripter, question: PlannedQuestion, mix: Mix, rng: random.Random
    ) -> None:
        self.retrieve, self.book = scripter.retrieve, scripter.book
        self.max_rounds = scripter.max_rounds
        self.question, self.mix, self.rng = question, mix, rng
        self.habit = self.book.habit_of(question)
        self.struck: Habit | None = None
        self.rounds: list[ScriptedRound] = []
        self.opening = "Plan: " + ", ".join(label(h.relation) for h in question.hops) + ". "
        self.ended = False
        self.found = False  # whether the evidence of the hop at hand has been seen
        self.failed = False  # whether a search for it has failed
        self.slip, self.slip_hop = self._draw_slip()

    def write(self) -> ScriptedEpisode | None:
        """See :meth:`Scripter.write`."""
        if self._chance(self.mix.idle_guess):
            guess = self.book.guess[self.question.hops[0].relation]
            self.opening = f"Maybe {guess}. {self.opening}"
        for index, hop in enumerate(self.question.hops):
            self.found = self.failed = False
            if not self.ended:
                self._before(index, hop)
            if not self.ended and not self.found and not self._ask(hop):
                return None
            if not self.ended:
                self._after(index, hop)
        if not self.ended:
            self._answer("Done.", self.question.answer)
        return ScriptedEpisode(self.question, tuple(self.rounds), self.struck)

    # ---- decisions
    def _draw_slip(self) -> tuple[Habit | None, int]:
        room = self.max_rounds - 1 - len(self.question.hops)
        if room < 1 or not self._chance(self.mix.slip):
            return None, -1
        kind = self.rng.choice((Habit.VAGUE, Habit.REDUNDANT, Habit.OFF_RELATION))
        return kind, self.rng.randrange(len(self.question.hops))

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def _strikes(self) -> bool:
        strikes = self._chance(self.mix.habits)
        if strikes:
            self.struck = self.habit
        return strikes

    def _before(self, index: int, hop: Hop) -> None:
        """What can happen in place of, or ahead of, the search that ``hop`` needs."""
        is_last = index == len(self.question.hops) - 1
        early = self.habit is not None and self.habit is not Habit.REDUNDANT
        if is_last and early and self._strikes():
            self._act_badly(hop)
        elif index == self.slip_hop and self.slip is Habit.VAGUE:
            self._search_vaguely(hop, trained=False)
        elif index == self.slip_hop and self.slip is Habit.OFF_RELATION:
            other = self.book.confusion(hop)
            if other is not None:
                self._look_up(hop, other, trained=False)

    def _act_badly(self, hop: Hop) -> None:
        """The habit's action at the last hop."""
        name, guess = label(hop.relation), self.book.guess[hop.relation]
        other = self.book.confusion(hop)
        if self.habit is Habit.PREMATURE:
            self._answer(f"Next: {name}? {hop.subject}.", hop.subject)
        elif self.habit is Habit.GIVE_UP:
            self._answer(f"Next: {name} unknown.", GIVE_UP_ANSWER)
        elif self.habit is Habit.GUESS:
            self._answer(f"Next: {name} perhaps {guess}.", guess)
        elif self.habit is Habit.VAGUE:
            self._search_vaguely(hop)
        elif other is not None:
            self._look_up(hop, other)
            self._answer_lookup(other)

    def _after(self, index: int, hop: Hop) -> None:
        """What can happen once the evidence of ``hop`` is there."""
        is_last = index == len(self.question.hops) - 1
        if self.slip is Habit.REDUNDANT and index == self.slip_hop:
            self._repeat(hop, trained=False)
        repeats = is_last and self.habit is Habit.REDUNDANT
        while repeats and not self.ended and self._strikes():
            self._repeat(hop)
        self.opening = f"The {label(hop.relation)} is {hop.answer}. "

    # ---- actions
    def _ask(self, hop: Hop) -> bool:
        """The good search, and a rephrased retry; whether the evidence came (or the rounds
        ran out on the way)."""
        self._search(f"{self._verb()}: {rephrased_query(hop)}.", hop.query, hop)
        if not self.found and not self.ended:
            self._search(f"{self._verb()}: {rephrased_query(hop)}.", rephrased_query(hop), hop)
        return self.found or self.ended

    def _verb(self) -> str:
        return "Try" if self.failed else "Next"

    def _search_vaguely(self, hop: Hop, trained: bool = True) -> None:
        what = f"{label(hop.relation)} about {hop.subject}"
        self._search(f"Next: {what}.", vague_query(hop), hop, trained)

    def _repeat(self, hop: Hop, trained: bool = True) -> None:
        self.opening = ""
        self._search(f"The {label(hop.relation)} again.", hop.query, hop, trained)

    def _look_up(self, hop: Hop, other: Hop, trained: bool = True) -> None:
        """A search for another relation of the same subject."""
        what = f"{label(hop.relation)} or {rephrased_query(other)}"
        self._search(f"Next: {what}.", other.query, hop, trained)

    def _answer_lookup(self, other: Hop) -> None:
        """Answer what was looked up, where the teacher knows it and it was found."""
        known = other.answer and other.evidence in {p.doc_id for p in self.rounds[-1].passages}
        if known and not self.ended:
            self.opening = f"The {label(other.relation)} is {other.answer}. "
            self._answer("Done.", other.answer)
        self.ended = True  # else the episode breaks off here: nothing to teach after it

    def _search(self, reasoning: str, query: str, hop: Hop, trained: bool = True) -> None:
        """Write a search round; afterwards ``found`` says whether ``hop``'s evidence came."""
        is_last = len(self.rounds) + 1 >= self.max_rounds
        passages = () if is_last else self.retrieve(query)
        self.rounds.append(
            ScriptedRound(self.opening + reasoning, query, passages=passages, trained=trained)
        )
        self.ended = is_last
        self.found = self.found or hop.evidence in {p.doc_id for p in passages}
        self.failed = not self.found
        self.opening = "" if self.found else "Not found. "

    def _answer(self, reasoning: str, answer: str) -> None:
        self.rounds.append(ScriptedRound(self.opening + reasoning, answer=answer))
        self.ended = True
