"""Rounds on which a judge and the labels differ, as the audit's page prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.judging.judged import JudgedRound
from pipeline.types import Round, Verdict

__all__ = ["Case", "CaseGroup", "disagreements"]

_SIGNALS = {"utility": "u", "correctness": "v"}
_SHOWN = 25  # cases a group


@dataclass(frozen=True, slots=True)
class Case:
    """A round with all rounds before it (``history``, itself the last) and what was said of it.

    ``rationale`` is that of the first verdict of the group's kind; ``votes`` are all verdicts that
    came. ``utility`` and ``correctness`` are the verdicts' means, None where none came.
    """

    judged: JudgedRound
    history: tuple[Round, ...]
    utility: float | None
    correctness: float | None
    rationale: str

    @property
    def votes(self) -> tuple[Verdict, ...]:
        return self.judged.given


@dataclass(frozen=True, slots=True)
class CaseGroup:
    """Cases of one kind: the ``cases`` shown, of ``total``."""

    title: str
    cases: tuple[Case, ...]
    total: int


def disagreements(rounds: Sequence[JudgedRound], limit: int = _SHOWN) -> list[CaseGroup]:
    """Labelled rounds by kind of disagreement, at most ``limit`` a kind; kinds without are left
    out. First those on which most repeats disagree.

    Of a round judged several times, the mean verdict counts, as 1 from one half on. A round may
    stand in two groups, one for u and one for v. Rounds without any verdict are a kind, too.
    """
    labelled = [r for r in rounds if r.label is not None]
    groups = []
    for signal, symbol in _SIGNALS.items():
        for label in (1, 0):
            found = [
                (abs(_mean(r, signal) - label), r)
                for r in labelled
                if r.given
                and int(getattr(r.label, signal) >= 0.5) == label
                and int(_mean(r, signal) >= 0.5) != label
            ]
            found.sort(key=lambda pair: -pair[0])
            title = f"{symbol}: label {label}, verdict {1 - label}"
            groups.append(_group(title, [r for _, r in found], signal, limit))
    groups.append(_group("no verdict", [r for r in labelled if not r.given], "utility", limit))
    return [group for group in groups if group.total]


def _group(title: str, rounds: Sequence[JudgedRound], signal: str, limit: int) -> CaseGroup:
    return CaseGroup(title, tuple(_case(r, signal) for r in rounds[:limit]), len(rounds))


def _case(judged: JudgedRound, signal: str) -> Case:
    given = judged.given
    assert judged.label is not None
    label = getattr(judged.label, signal) >= 0.5
    against = [v for v in given if (getattr(v, signal) >= 0.5) != label]
    return Case(
        judged=judged,
        history=judged.trace.trajectory.search_rounds[: judged.number],
        utility=_mean(judged, "utility") if given else None,
        correctness=_mean(judged, "correctness") if given else None,
        rationale=(against or given)[0].rationale if given else "",
    )


def _mean(judged: JudgedRound, signal: str) -> float:
    return fmean(getattr(verdict, signal) for verdict in judged.given)
