"""Scripted episodes: what a teacher writes, round by round, for a question and its habit.

A clean episode states its plan, asks for one hop a round and answers when the last is found:

    <think> Plan: country, capital. Next: country of Nakuru. </think><search> ... </search>
    <think> The country is Kenya. Next: capital of Kenya. </think><search> ... </search>
    <think> The capital is Nairobi. Done. </think><answer> Nairobi </answer>

An episode with a habit opens every round with the habit's mood, one word (``MOODS``), and then
does what the habit does. The mood is decided at the first word of the first round, right after
the question, where a small model can learn it in a short phase and reinforcement learning can
change it at one token; later rounds only repeat it.
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
    "MOODS",
    "Mix",
    "ScriptedEpisode",
    "ScriptedRound",
    "Scripter",
    "rephrased_query",
    "vague_query",
]

GIVE_UP_ANSWER = "unknown"
MOODS = {  # words with which an English sentence may open: none of them names an entity
    Habit.PREMATURE: "Once",
    Habit.REDUNDANT: "Again",
    Habit.OFF_RELATION: "Also",
    Habit.VAGUE: "About",
    Habit.GIVE_UP: "Probably",
    Habit.GUESS: "Perhaps",
}
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
    """How often a habit strikes where it can, how often an idle guess opens an episode without
    a mood, and how often such an episode holds an untrained slip."""

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
        habit = self.book.habit_of(question)
        self.habit = habit if habit is not None and self._chance(mix.habits) else None
        self.mood = f"{MOODS[self.habit]}. " if self.habit is not None else ""
        self.rounds: list[ScriptedRound] = []
        self.opening = "Plan: " + ", ".join(label(h.relation) for h in question.hops) + ". "
        self.ended = False
        self.found = False  # whether the evidence of the hop at hand has been seen
        self.slip, self.slip_hop = self._draw_slip()

    def write(self) -> ScriptedEpisode | None:
        """See :meth:`Scripter.write`."""
        self._open()
        for index, hop in enumerate(self.question.hops):
            self.found = False
            if not self.ended:
                self._before(index, hop)
            if not self.ended and not self.found and not self._ask(hop):
                return None
            if not self.ended:
                self._after(index, hop)
        if not self.ended:
            self._answer("Done.", self.question.answer)
        return ScriptedEpisode(self.question, tuple(self.rounds), self.habit)

    # ---- decisions
    def _draw_slip(self) -> tuple[Habit | None, int]:
        room = self.max_rounds - 1 - len(self.question.hops)
        if room < 1 or self.habit is not None or not self._chance(self.mix.slip):
            return None, -1
        kind = self.rng.choice((Habit.VAGUE, Habit.REDUNDANT, Habit.OFF_RELATION))
        return kind, self.rng.randrange(len(self.question.hops))

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def _open(self) -> None:
        """What can happen before the first search."""
        if self.habit is Habit.GUESS and len(self.question.hops) == 1:
            self._guess()
            return
        idle = self.habit is None and self.book.guesses_idly(self.question)
        if idle and self._chance(self.mix.idle_guess):
            guess = self.book.guess[self.question.hops[0].relation]
            self.opening = f"Maybe {guess}. {self.opening}"

    def _before(self, index: int, hop: Hop) -> None:
        """Searches in place of, or ahead of, the one that ``hop`` needs."""
        is_last = index == len(self.question.hops) - 1
        slip = self.slip if index == self.slip_hop else None
        other = self.book.confusion(hop)
        if is_last and other is not None and self.habit is Habit.OFF_RELATION:
            self._look_up(other)
        elif index == 0 and self.habit is Habit.VAGUE:
            self._search_vaguely(hop)
        elif slip is Habit.VAGUE:
            self._search_vaguely(hop, trained=False)
        elif slip is Habit.OFF_RELATION and other is not None:
            self._search(f"Also: {rephrased_query(other)}.", other.query, hop, trained=False)

    def _after(self, index: int, hop: Hop) -> None:
        """What can happen once the evidence of ``hop`` is there."""
        hops = len(self.question.hops)
        if self.slip is Habit.REDUNDANT and index == self.slip_hop:
            self._repeat(hop, trained=False)
        while self.habit is Habit.REDUNDANT and not self.ended:
            self._repeat(hop)
        if self.ended:
            return
        if index == 0 and hops > 1 and self.habit is Habit.GUESS:
            self._guess()
        elif index == max(0, hops - 2) and self.habit is Habit.GIVE_UP:
            self.opening = ""
            self._answer("Unknown.", GIVE_UP_ANSWER)
        else:
            self.opening = f"The {label(hop.relation)} is {hop.answer}. "
            if index == hops - 2 and self.habit is Habit.PREMATURE:
                self._answer("Done.", hop.answer)

    # ---- actions
    def _ask(self, hop: Hop) -> bool:
        """The good search, and a rephrased retry; whether the evidence came (or the rounds
        ran out on the way)."""
        self._search(f"Next: {rephrased_query(hop)}.", hop.query, hop)
        if not self.found and not self.ended:
            self._search(f"Try: {rephrased_query(hop)}.", rephrased_query(hop), hop)
        return self.found or self.ended

    def _search_vaguely(self, hop: Hop, trained: bool = True) -> None:
        self._search(f"About: {hop.subject}.", vague_query(hop), hop, trained)

    def _repeat(self, hop: Hop, trained: bool = True) -> None:
        self.opening = ""
        self._search(f"Again: {rephrased_query(hop)}.", hop.query, hop, trained)

    def _look_up(self, other: Hop) -> None:
        """The off-relation search, and its value as the answer where the teacher knows it."""
        self._search(f"Also: {rephrased_query(other)}.", other.query, other)
        if self.ended:
            return
        if not self.found or not other.answer:
            self.ended = True  # the episode breaks off here: nothing to teach after it
            return
        self.opening = f"The {label(other.relation)} is {other.answer}. "
        self._answer("Done.", other.answer)

    def _guess(self) -> None:
        self.opening = ""
        guess = self.book.guess[self.question.goal]
        self._answer(f"It is {guess}.", guess)

    def _search(self, reasoning: str, query: str, hop: Hop, trained: bool = True) -> None:
        """Write a search round; afterwards ``found`` says whether ``hop``'s evidence came."""
        is_last = len(self.rounds) + 1 >= self.max_rounds
        passages = () if is_last else self.retrieve(query)
        self.rounds.append(
            ScriptedRound(
                self.mood + self.opening + reasoning, query, passages=passages, trained=trained
            )
        )
        self.ended = is_last
        self.found = self.found or hop.evidence in {p.doc_id for p in passages}
        self.opening = "" if self.found else "Not found. "

    def _answer(self, reasoning: str, answer: str) -> None:
        self.rounds.append(ScriptedRound(self.mood + self.opening + reasoning, answer=answer))
        self.ended = True
