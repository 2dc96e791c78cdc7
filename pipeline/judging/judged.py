"""Search rounds that have labels and were judged, once or several times: what an audit counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.judging.traces import LabelledTrace
from pipeline.types import Round, Verdict

__all__ = ["SIGNALS", "JudgedRound", "Votes", "judged_rounds", "signal_class", "votes"]

# By name: utility u, correctness v, and their product p (``Verdict.contribution``).
SIGNALS: Mapping[str, Callable[[Verdict], float]] = {
    "utility": lambda verdict: verdict.utility,
    "correctness": lambda verdict: verdict.correctness,
    "contribution": lambda verdict: verdict.contribution,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRound:
    """Search round ``number`` (from 1) of a trace and what a judge said of it, one verdict a
    repeat, ``None`` where none came."""

    trace: LabelledTrace
    number: int
    verdicts: tuple[Verdict | None, ...]

    @property
    def played(self) -> Round:
        """The round itself."""
        return self.trace.trajectory.search_rounds[self.number - 1]

    @property
    def question(self) -> str:
        """Id of its question: the unit that is resampled."""
        return self.trace.trajectory.question.id

    @property
    def label(self) -> Verdict | None:
        """Its label, ``None`` where nobody gave one."""
        return self.trace.labels[self.number - 1]

    @property
    def given(self) -> tuple[Verdict, ...]:
        """The verdicts that came."""
        return tuple(verdict for verdict in self.verdicts if verdict is not None)

    @property
    def kind(self) -> str:
        """What the round is, where the maker of the trace says it (``metadata.kinds``, one a
        search round); else empty."""
        kinds = self.trace.trajectory.question.metadata.get("kinds") or ()
        return str(kinds[self.number - 1]) if self.number <= len(kinds) else ""

    @property
    def chars(self) -> int:
        """Length: characters of its reasoning and of its passages with their titles."""
        played = self.played
        return len(played.reasoning) + sum(len(p.title) + len(p.text) for p in played.passages)


def judged_rounds(
    traces: Sequence[LabelledTrace],
    verdicts: Sequence[Sequence[Sequence[Verdict | None]]],
) -> list[JudgedRound]:
    """The search rounds of ``traces``; ``verdicts[t][r]`` is what repeat ``r`` said of trace ``t``,
    one entry a search round.

    Raises ValueError where the numbers of traces or rounds differ.
    """
    rounds = []
    for trace, repeats in zip(traces, verdicts, strict=True):
        for number, column in enumerate(zip(*repeats, strict=True), start=1):
            rounds.append(JudgedRound(trace=trace, number=number, verdicts=column))
        if repeats and len(repeats[0]) != len(trace.labels):
            raise ValueError(f"trace {trace.id!r}: {len(repeats[0])} verdicts a repeat")
    return rounds


def signal_class(verdict: Verdict, signal: str) -> int:
    """The class that a signal is counted as: 1 from one half on, else 0. The product is of class 1
    where both its factors are.

    >>> signal_class(Verdict(utility=0.6, correctness=0.6), "contribution")
    1
    >>> signal_class(Verdict(utility=0.4, correctness=1.0), "utility")
    0
    """
    if signal == "contribution":
        return int(verdict.utility >= 0.5 and verdict.correctness >= 0.5)
    return int(SIGNALS[signal](verdict) >= 0.5)


@dataclass(frozen=True, slots=True)
class Votes:
    """One entry a verdict on a labelled round: its question, label and verdict as classes.

    ``question`` is ``str[N]``, ``label`` and ``verdict`` are ``int64[N]`` of 0 and 1.
    """

    question: np.ndarray
    label: np.ndarray
    verdict: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def votes(rounds: Iterable[JudgedRound], signal: str) -> Votes:
    """Every verdict given on a labelled round, repeats one by one; others are left out."""
    rows = [
        (r.question, signal_class(r.label, signal), signal_class(verdict, signal))
        for r in rounds
        if r.label is not None
        for verdict in r.given
    ]
    questions, labels, verdicts = zip(*rows, strict=True) if rows else ((), (), ())
    return Votes(
        np.array(questions, dtype=np.str_),
        np.array(labels, dtype=np.int64),
        np.array(verdicts, dtype=np.int64),
    )
