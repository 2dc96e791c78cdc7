"""One verdict of several: of the samples of one judge, or of several judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.types import Verdict

__all__ = ["Rule", "combine"]

Rule = Literal["majority", "mean"]


def combine(verdicts: Sequence[Verdict | None], rule: Rule) -> Verdict | None:
    """The signals' mean, or what more than half say (0.5 where they are equally many).

    ``None`` where half or more of them gave no verdict: those that are left speak for too few. The
    rationale is that of the first which agrees with the outcome most.

    >>> yes, no = Verdict(utility=1, correctness=1), Verdict(utility=0, correctness=1)
    >>> combine([yes, no, yes], "mean").utility, combine([yes, no, yes], "majority").utility
    (0.6666666666666666, 1.0)
    >>> combine([yes, None], "mean") is None
    True
    """
    given = [v for v in verdicts if v is not None]
    if 2 * len(given) <= len(verdicts):
        return None
    utility = _joined([v.utility for v in given], rule)
    correctness = _joined([v.correctness for v in given], rule)

    def distance(verdict: Verdict) -> float:
        return abs(verdict.utility - utility) + abs(verdict.correctness - correctness)

    return Verdict(
        utility=utility,
        correctness=correctness,
        rationale=min(given, key=distance).rationale,
    )


def _joined(signals: Sequence[float], rule: Rule) -> float:
    mean = sum(signals) / len(signals)
    if rule == "mean" or mean == 0.5:
        return mean
    return float(mean > 0.5)
