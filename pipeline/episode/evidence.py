"""The evidence judge: a rule over known evidence, in place of an LLM.

For a search round of a question whose evidence passages are known:

- utility u = 1 iff the round returned an evidence passage that no earlier round had returned;
- correctness v = 1 iff evidence was still missing before the round, AND its query asks something,
  AND every entity in its reasoning and query occurs in the question or in passages of earlier
  rounds, AND the query does not repeat one that had already succeeded (a rephrased retry of a
  failed one counts).

A query repeats another if it has the same words, whatever their order, case, accents and signs, or
if it brings the same passages, in whatever order.

An *entity* is a capitalised word or a number, other than a common word that opens a sentence. All
texts are read in their plain form (``pipeline/judging/untrusted.py``).
"""

from __future__ import annotations

import random
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.judging.untrusted import plain_text
from pipeline.types import Passage, Trajectory, Verdict

__all__ = ["Finding", "entities", "findings", "flip_verdicts", "judge_by_evidence"]

# Letters in black circles and squares, and those of flags, are symbols without a plain form.
_LETTERS = "(?:[^\\W_]|[\U0001f150-\U0001f189\U0001f1e6-\U0001f1ff])+"
_WORD = re.compile(rf"{_LETTERS}(?:['’\-]{_LETTERS})*")
_COMMON_WORDS = """
a about after again all also an and another answer any are as at because before both but by
can check could did do does each finally find first for found from get give good got had has
have he her here his how however i if in is it its just know last let look looking maybe my
name need next no not nothing now of ok okay on once one only or our perhaps plan please
probably question repeat retry same search searching second she should since so some still
tell that the their them then there therefore these they third this those though thus to try
was we well were what when where which while who whose why will with would yes yet you your
"""
_OPENERS = frozenset(_COMMON_WORDS.split())


@dataclass(frozen=True, slots=True)
class Finding:
    """What the rule sees in one search round.

    ``found`` are the evidence passages that were new, in the question's order; ``objection`` is
    ``known`` (nothing was missing any more), ``empty`` (no query), ``repeats`` (a query that had
    succeeded), ``unseen`` (it names what nothing before it says: ``unseen``) or None.
    """

    found: tuple[str, ...]
    objection: str | None
    unseen: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The two signals, with a rationale."""
        return Verdict(
            utility=float(bool(self.found)),
            correctness=float(self.objection is None),
            rationale=_rationale(self),
        )


def judge_by_evidence(trajectory: Trajectory) -> tuple[Verdict | None, ...]:
    """One verdict a search round, ``None`` for all where the question's evidence is unknown."""
    if not trajectory.question.evidence:
        return (None,) * len(trajectory.search_rounds)
    return tuple(finding.verdict for finding in findings(trajectory))


def findings(trajectory: Trajectory) -> list[Finding]:
    """What the rule sees, one a search round. Raises ValueError where no evidence is known."""
    evidence = trajectory.question.evidence
    if not evidence:
        raise ValueError(f"question {trajectory.question.id!r} has no known evidence")
    missing = list(dict.fromkeys(evidence))
    known = _words([trajectory.question.text])
    succeeded: set[frozenset[str]] = set()  # the words of their queries
    returned_before: set[frozenset[str]] = set()  # by those
    seen = []
    for search_round in trajectory.search_rounds:
        query = search_round.query or ""
        asked = frozenset(_words([query]) - _OPENERS)
        returned = frozenset(p.doc_id for p in search_round.passages)
        found = tuple(doc_id for doc_id in missing if doc_id in returned)
        unseen = entities(search_round.reasoning, query) - known
        repeats = asked in succeeded or returned in returned_before
        objection = _objection(bool(missing), asked, unseen, repeats)
        seen.append(Finding(found, objection, tuple(sorted(unseen))))
        missing = [doc_id for doc_id in missing if doc_id not in returned]
        known |= _passage_words(search_round.passages)
        if found:
            succeeded.add(asked)
            returned_before.add(returned)
    return seen


def flip_verdicts(
    trajectory: Trajectory, verdicts: Sequence[Verdict | None], probability: float
) -> tuple[Verdict | None, ...]:
    """A judge that errs: each signal ``x`` becomes ``1 - x`` with ``probability``, independently.

    Which ones depends on the question, the group and the round alone, so that a comparison is
    not disturbed by the order of judging.
    """
    if probability <= 0:
        return tuple(verdicts)
    name = f"{trajectory.question.id}/{trajectory.group_id}/{trajectory.sample_id}"
    draw = random.Random(f"flip {name}")

    def flipped(signal: float) -> float:
        return 1.0 - signal if draw.random() < probability else signal

    return tuple(
        None
        if verdict is None
        else replace(
            verdict,
            utility=flipped(verdict.utility),
            correctness=flipped(verdict.correctness),
        )
        for verdict in verdicts
    )


def entities(*texts: str) -> set[str]:
    """Entity words of the texts, case- and accent-folded.

    >>> sorted(entities("The country is Côte d'Ivoire. Next: area in 1990."))
    ['1990', 'cote', "d'ivoire"]
    >>> entities("maybe Ⓝairobi")
    {'nairobi'}
    """
    found = set()
    for match in _matches(texts):
        word = match.group(0)
        if not (any(map(str.isupper, word)) or word[0].isdigit()):
            continue
        if (word == "I" or _opens(match)) and word.lower() in _OPENERS:
            continue
        found.add(_fold(word))
    return found


def _opens(match: re.Match[str]) -> bool:
    """Whether the word opens a sentence. A plain text has one space at most before it."""
    before = match.string[max(0, match.start() - 2) : match.start()].rstrip()
    return not before or before[-1] in ".!?:;"


def _objection(
    evidence_missing: bool, asked: frozenset[str], unseen: set[str], repeats: bool
) -> str | None:
    """Why the round's reasoning is not correct; ``None`` where it is."""
    if not evidence_missing:
        return "known"
    if not asked:
        return "empty"
    if repeats:
        return "repeats"
    return "unseen" if unseen else None


def _rationale(finding: Finding) -> str:
    utility = "no new evidence"
    if finding.found:
        utility = f"new evidence: {', '.join(sorted(finding.found))}"
    why = {
        None: "the query seeks what is still missing",
        "known": "all evidence had been found before",
        "empty": "the query asks nothing",
        "repeats": "repeats a query that had already succeeded",
        "unseen": f"names what nothing before it says: {', '.join(finding.unseen)}",
    }
    return f"{utility}; {why[finding.objection]}"


def _passage_words(passages: Iterable[Passage]) -> set[str]:
    return _words(part for p in passages for part in (p.title, p.text))


def _words(texts: Iterable[str]) -> set[str]:
    return {_fold(match.group(0)) for match in _matches(texts)}


def _matches(texts: Iterable[str]) -> Iterator[re.Match[str]]:
    """The words of the texts in their plain form, whole: a middle that is cut could hide a name."""
    for text in texts:
        yield from _WORD.finditer(plain_text(text, sys.maxsize))


def _fold(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word.casefold().replace("’", "'"))
    return "".join(c for c in decomposed if not unicodedata.combining(c)).removesuffix("'s")
