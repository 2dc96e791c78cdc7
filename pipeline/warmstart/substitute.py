"""Entity substitution: an episode retold with invented names and numbers.

The policy must copy what it reads, not remember what it read in training. A part of the episodes
is therefore retold: every subject and answer of its plan is replaced, wherever it occurs in the
question, the rounds and the passages, by a made-up name or, digit by digit, by another number.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.types import Passage

__all__ = ["NameMaker", "substitution"]

_NUMBER = re.compile(r"[+\-]?\d[\d,. ]*")
_RUN = re.compile(r"[^\W\d_]+(?:[ '\-][^\W\d_]+)*")  # letters, no punctuation
_SPAN_CHARS = 28
_NAME_WORD = re.compile(r"[A-Z][^\W\d_]{2,11}")


@dataclass(frozen=True, slots=True)
class NameMaker:
    """Makes up names: words of real titles, halves of two of them put together, and spans of
    running text. All sorts of spelling must be copied piece by piece, also "bird of paradise",
    hyphens and apostrophes."""

    words: Sequence[str]  # capitalised words of titles
    spans: Sequence[str] = ()  # one to four words of running text
    invented: float = 0.5  # share of words put together from two halves
    spanned: float = 0.3  # share of names that are spans, where there are any

    @classmethod
    def from_passages(cls, passages: Iterable[Passage]) -> NameMaker:
        """Collect title words and a span a passage, each once, in order."""
        words: dict[str, None] = {}
        spans: dict[str, None] = {}
        rng = random.Random(0)
        for passage in passages:
            words |= dict.fromkeys(_NAME_WORD.findall(passage.title))
            runs = _RUN.findall(passage.text)
            if runs:
                spans[_cut_span(rng.choice(runs), rng)] = None
        return cls(tuple(words) or ("Nowhere",), tuple(span for span in spans if len(span) > 2))

    def __call__(self, rng: random.Random) -> str:
        """A made-up name."""
        if self.spans and rng.random() < self.spanned:
            return rng.choice(self.spans)
        count = rng.choices((1, 2, 3), (6, 4, 1))[0]
        return rng.choice("   -").join(self._word(rng) for _ in range(count))

    def _word(self, rng: random.Random) -> str:
        word = rng.choice(self.words)
        if rng.random() >= self.invented:
            return word
        other = rng.choice(self.words)
        return word[: rng.randint(2, 5)] + other[-rng.randint(2, 5) :].lower()


def _cut_span(run: str, rng: random.Random) -> str:
    words = run.split(" ")
    start = rng.randrange(len(words))
    return " ".join(words[start : start + rng.randint(1, 4)])[:_SPAN_CHARS].strip(" -'")


def _other_number(number: str, rng: random.Random) -> str:
    """Every digit redrawn; a leading digit never becomes 0."""
    digits = [
        str(rng.randint(0 if i and number[i - 1].isdigit() else 1, 9)) if c.isdigit() else c
        for i, c in enumerate(number)
    ]
    return "".join(digits)


def substitution(
    names: Iterable[str], make_name: NameMaker, rng: random.Random
) -> Callable[[str], str]:
    """A function that replaces ``names`` in a text, whole words only, longest first.

    Numbers (also inside a value with a unit) get other digits; names of one or two characters
    stay as they are.
    """
    replacement = {}
    for name in sorted(set(names)):
        if len(name) < 3:
            continue
        if any(c.isdigit() for c in name):
            replacement[name] = _NUMBER.sub(lambda m: _other_number(m.group(0), rng), name)
        else:
            replacement[name] = make_name(rng)
    if not replacement:
        return lambda text: text
    longest_first = sorted(replacement, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(n)}(?!\w)" for n in longest_first))
    return lambda text: pattern.sub(lambda m: replacement[m.group(0)], text)
