"""What a verdict did: what its opposite would have done, which mattered most, what its lack did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.report.data import ShownTrajectory
from pipeline.types import VerdictNeed

if TYPE_CHECKING:
    from pipeline.credit import Algorithm, OppositeVerdict, TrajectoryCredit

__all__ = ["MatteredMost", "VerdictsView", "verdicts_view"]

_NO_CHANGE = 1e-9  # of a weight: below it is rounding of floats


@dataclass(frozen=True, slots=True)
class MatteredMost:
    """The round whose verdict moves its own weight most; ``alike``: others that move as much."""

    number: int
    weight: float
    opposite_weight: float
    alike: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VerdictsView:
    """Of one trajectory. ``opposites`` and ``lacks`` have one entry a search round."""

    opposites: tuple[OppositeVerdict | None, ...]
    lacks: tuple[str, ...]  # what a verdict's lack did; empty where there is a verdict
    mattered: MatteredMost | None
    unmoved: str  # why no opposite verdict would have moved a weight; empty where one would


def verdicts_view(shown: ShownTrajectory, algorithm: Algorithm | None) -> VerdictsView:
    """What the verdicts of a shown trajectory did. Without its credit or an algorithm that weighs
    rounds by verdicts there are no opposites."""
    trajectory, credit = shown.trajectory, shown.credit
    rounds = len(trajectory.search_rounds)
    if algorithm is None or credit is None:
        lacks = tuple(_no_verdict(r.verdict is None) for r in trajectory.search_rounds)
        return VerdictsView((None,) * rounds, lacks, None, "")
    lacks = _lacks(shown, credit, algorithm)
    if not algorithm.weighs_rounds or not rounds:
        return VerdictsView((None,) * rounds, lacks, None, "")
    opposites = algorithm.opposite_verdicts(credit)
    mattered = _mattered_most(opposites)
    unmoved = "" if mattered else _why_unmoved(shown, credit, algorithm)
    return VerdictsView(opposites, lacks, mattered, unmoved)


def _mattered_most(opposites: Sequence[OppositeVerdict | None]) -> MatteredMost | None:
    changes = [0.0 if v is None else abs(v.change) for v in opposites]
    largest = max(changes)
    if largest < _NO_CHANGE:
        return None
    first, *alike = (t for t, c in enumerate(changes) if c > largest - _NO_CHANGE)
    verdict = opposites[first]
    assert verdict is not None
    return MatteredMost(
        first + 1, verdict.weight, verdict.opposite_weight, tuple(t + 1 for t in alike)
    )


def _why_unmoved(shown: ShownTrajectory, credit: TrajectoryCredit, algorithm: Algorithm) -> str:
    failed = np.isnan(credit.contributions)
    if not algorithm.weighs(credit):
        if shown.trajectory.correct:
            return "no better than the other tries, so every round weighs 1 whatever the verdicts"
        return "in a lost try every round weighs 1 whatever the verdicts"
    if failed.all():
        return "no round has one"
    if failed.any() and algorithm.config.failed_verdict == "uniform":
        return "a round without a verdict makes all of them weigh 1"
    if len(failed) == 1:
        return "there is one search round, which keeps the whole advantage"
    return "no single opposite one would have moved a weight"


def _lacks(
    shown: ShownTrajectory, credit: TrajectoryCredit, algorithm: Algorithm
) -> tuple[str, ...]:
    """``failed_verdict`` at work, where a verdict was needed."""
    needed = algorithm.weighs(credit) or algorithm.config.credit == "process"
    needed = needed and algorithm.verdict_need is not VerdictNeed.NONE
    rule = algorithm.config.failed_verdict
    did = {
        "uniform": "all search rounds of this try count alike",
        "zero": "it counted as one that contributed nothing (p = 0)",
    }[rule]
    texts = []
    for played, p in zip(shown.trajectory.search_rounds, credit.contributions, strict=True):
        if not needed or not np.isnan(p):
            texts.append(_no_verdict(played.verdict is None))
        else:
            had_none = "No verdict came" if played.verdict is None else "Training had no verdict"
            texts.append(f"{had_none} for this round: {did} (algorithm.failed_verdict={rule}).")
    return tuple(texts)


def _no_verdict(lacks: bool) -> str:
    return "No verdict came for this round." if lacks else ""
