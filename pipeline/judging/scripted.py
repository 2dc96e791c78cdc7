"""Search traces by script, whose labels follow from how they were made.

What is needed for a question is known (its supporting paragraphs); the script decides what each
search brings and whether its reasoning may say what it says.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.judging.traces import LabelledTrace, make_trajectory
from pipeline.types import Passage, Question, Verdict

__all__ = ["KINDS", "Material", "NamePool", "scripted_trace"]

#: What a round can be, with the utility and the correctness that follow from it, and why.
KINDS: Mapping[str, tuple[int, int, str]] = {
    "found": (1, 1, "a supporting paragraph that no earlier round had brought; names only what "
                    "had been said before"),
    "missed": (0, 1, "seeks a supporting paragraph that is missing, and brings only others"),
    "repeated": (0, 0, "the query and the passages of an earlier round that had succeeded"),
    "guessed": (1, 0, "a new supporting paragraph, but the reasoning names what nobody had said"),
    "guessed_missed": (0, 0, "brings nothing needed, and the reasoning names what nobody had said"),
    "surplus": (0, 0, "all supporting paragraphs had been found before"),
}  # fmt: skip

_TOP_K = 3  # passages a search
_MISS = 0.35  # chance of a round that misses before one that finds
_GUESS = 0.25  # chance that a round's reasoning guesses
_REPEAT = 0.35  # chance of a repetition after a round that found something
_STOP = 0.1  # chance that the agent stops too early
_SURPLUS = (0, 0, 1, 1, 2)  # searches after all was found

_ABOUT = ("{}", "information about {}", "{}: overview", "what is known about {}", "{} background")
_WORDS = ("{}", "find out: {}", "search for this: {}", "{} (in other words)")
_SEEK = ("I need to know more about {}.", "Let me look up {}.", "Next, I look for {}.")
_SEEK_WORDS = ("I search for the question as it stands.", "First I look for what is asked.")
_AGAIN = ("That did not help. Let me try other words.", "Nothing useful. I try it once more.")
_REPEATS = ("Let me check this again.", "I want to read this once more.", "")
_MORE = ("I want to be sure, so I search once more.", "Let me look for more about this.")
_GUESSES = ("I am sure that it is {}.", "It must be {}.", "I remember that this is {}.")
_INVENTED = ("Velmora Tarquist", "Ostrid Kelvane", "Brannoch Sile", "Ulmera Dain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A question, the paragraphs that it needs (at least one), and others."""

    question: Question
    supporting: tuple[Passage, ...]
    distractors: tuple[Passage, ...]

    def text(self) -> str:
        """Everything that is said anywhere: question, answers, paragraphs."""
        return _said((*self.supporting, *self.distractors), self.question.text) + " ".join(
            self.question.answers
        )


class NamePool:
    """Titles of all questions' paragraphs, to guess from."""

    def __init__(self, materials: Iterable[Material]) -> None:
        self._names = sorted({_name(p) for m in materials for p in (*m.supporting, *m.distractors)})

    def wrong(self, material: Material, rng: random.Random) -> str:
        """A name of which no word stands anywhere in ``material``; an invented one where there is
        none among some drawn at random."""
        said = set(_words(material.text()))
        for _ in range(20):
            name = rng.choice(self._names)
            words = _words(name)
            if words and name[0].isupper() and said.isdisjoint(words):
                return name
        return rng.choice(_INVENTED)


def scripted_trace(
    material: Material, names: NamePool, rng: random.Random, *, number: int
) -> LabelledTrace:
    """A trace that looks for the supporting paragraphs one after the other, with what may go wrong
    on the way. ``metadata.kinds`` says what each round is, a key of ``KINDS``.

    A paragraph is looked for by its title only once the question or a passage that was read names
    it; before that by the question's own words. One that nothing names is never looked for by a
    round with correctness 1, so a few traces end before everything is found.

    What the labels are: right by construction where the annotators of the question set were right
    that the supporting paragraphs are needed, and enough. What they are not: a person's reading of
    the rounds. A distractor may hold by chance what a supporting paragraph says; some questions
    can be answered from fewer paragraphs than are marked; the wording comes from templates, so a
    judge that does well here has not been tested on how a policy really reasons. The rounds are
    clear cases, and their kinds are more evenly spread than in rollouts.
    """
    script = _Script(material, names, rng)
    order = _order(material, rng)
    for place, target in enumerate(order):
        if rng.random() < _MISS:
            script.search(target, hit=False)
        script.search(target, hit=True)
        if rng.random() < _REPEAT:
            script.repeat()
        if place + 1 < len(order) and rng.random() < _STOP:
            break
    for _ in range(rng.choice(_SURPLUS) if script.complete else 0):
        script.surplus()
    return script.trace(number)


@dataclass(slots=True)
class _Script:
    """A trace as it is written, round by round."""

    material: Material
    names: NamePool
    rng: random.Random
    rows: list[tuple[str, str, tuple[Passage, ...]]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    found: list[Passage] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all supporting paragraphs were found."""
        return len(self.found) == len(self.material.supporting)

    def search(self, target: Passage, *, hit: bool) -> None:
        """Look for a supporting paragraph that is missing; with ``hit`` it is found."""
        reasoning, query = self._seek(target)
        guess = self.rng.random() < _GUESS
        if guess:
            name = self.names.wrong(self.material, self.rng)
            reasoning = f"{self.rng.choice(_GUESSES).format(name)} {reasoning}"
        self._add(
            ("guessed" if guess else "found") if hit else "guessed_missed" if guess else "missed",
            reasoning,
            query,
            self._passages([target] if hit else []),
        )
        if hit:
            self.found.append(target)

    def repeat(self) -> None:
        """Play a round that succeeded again, its reasoning in other words."""
        good = [i for i, kind in enumerate(self.kinds) if kind in ("found", "guessed")]
        _, query, passages = self.rows[self.rng.choice(good)]
        self._add("repeated", self.rng.choice(_REPEATS), query, passages)

    def surplus(self) -> None:
        """Search although nothing is missing."""
        query = self._unused(_ABOUT, _name(self.rng.choice(self.found)))
        self._add("surplus", self.rng.choice(_MORE), query, self._passages([]))

    def trace(self, number: int) -> LabelledTrace:
        """What was written, with its labels."""
        question = self.material.question
        metadata = {**question.metadata, "kinds": list(self.kinds)}
        return LabelledTrace(
            id=f"{question.id}/{number}",
            trajectory=make_trajectory(
                replace(question, metadata=metadata), self.rows, question.answers[0], number=number
            ),
            labels=tuple(
                Verdict(utility=u, correctness=v, rationale=why)
                for u, v, why in (KINDS[kind] for kind in self.kinds)
            ),
            labelled_by="supporting facts",
        )

    def _add(self, kind: str, reasoning: str, query: str, passages: Sequence[Passage]) -> None:
        self.kinds.append(kind)
        self.rows.append((reasoning, query, tuple(passages)))

    def _seek(self, target: Passage) -> tuple[str, str]:
        """Reasoning and query: by the title where it was named, else by the question's words."""
        read = [p for _, _, passages in self.rows for p in passages]
        again = self.kinds[-1:] in (["missed"], ["guessed_missed"])
        name = _name(target)
        if _names(_said(read, self.material.question.text), name):
            reasoning = self.rng.choice(_AGAIN if again else _SEEK).format(name)
            return reasoning, self._unused(_ABOUT, name)
        reasoning = self.rng.choice(_AGAIN if again else _SEEK_WORDS)
        return reasoning, self._unused(_WORDS, self.material.question.text)

    def _unused(self, wordings: Sequence[str], words: str) -> str:
        """A query that was not sent before, as long as there is one."""
        sent = {query for _, query, _ in self.rows}
        queries = [wording.format(words) for wording in wordings]
        return self.rng.choice([q for q in queries if q not in sent] or queries[-1:])

    def _passages(self, wanted: list[Passage]) -> list[Passage]:
        """``wanted`` among distractors, and now and then what had been found before."""
        others = [*self.material.distractors, *(self.found if self.rng.random() < 0.3 else ())]
        passages = [*wanted, *self.rng.sample(others, min(len(others), _TOP_K - len(wanted)))]
        self.rng.shuffle(passages)
        return passages


def _order(material: Material, rng: random.Random) -> list[Passage]:
    """An order in which as many supporting paragraphs as can be are named before their turn (the
    first one may be looked for by the question's words); those that cannot be are left out."""
    orders = list(itertools.permutations(material.supporting))[:120]
    rng.shuffle(orders)

    def reached(order: Sequence[Passage]) -> tuple[int, bool]:
        read = [order[0]]
        for passage in order[1:]:
            if not _names(_said(read, material.question.text), _name(passage)):
                break
            read.append(passage)
        return len(read), _names(material.question.text, _name(order[0]))

    best = max(orders, key=reached)
    return list(best[: reached(best)[0]])


def _name(passage: Passage) -> str:
    """The title without what tells it from others of its name: ``Lilu (mythology)`` is Lilu."""
    return re.sub(r"\s*\([^()]*\)\s*$", "", passage.title) or passage.title


def _names(text: str, name: str) -> bool:
    """Whether a text says a name, as whole words, whatever the case."""
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, flags=re.IGNORECASE))


def _said(passages: Iterable[Passage], question: str) -> str:
    return "\n".join([question, *(f"{p.title} {p.text}" for p in passages)])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
