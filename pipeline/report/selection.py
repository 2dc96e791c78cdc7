"""Which trajectories the page shows: won and lost, before, during and after training.

A question that was lost before and won after says most, so both its trajectories come first;
the rest is spread over the numbers of hops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle

from pipeline.metrics import redundant_rounds
from pipeline.report.data import Phase
from pipeline.types import Trajectory

__all__ = ["Chosen", "choose_trajectories"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A trajectory and the phase of the run that it is from."""

    trajectory: Trajectory
    phase: Phase


_Cell = tuple[Phase, bool]  # phase and whether it was won
_ORDER: tuple[_Cell, ...] = (
    ("before", False),
    ("after", True),
    ("before", True),
    ("after", False),
    ("training", True),
    ("training", False),
)


def choose_trajectories(
    before: Iterable[Trajectory],
    after: Iterable[Trajectory],
    training: Iterable[Trajectory] = (),
    *,
    count: int = 8,
) -> list[Chosen]:
    """At most ``count`` telling trajectories, those of one question side by side.

    The six kinds (before/after/training, won/lost) take turns while they last. Give sampled
    groups where there are any: samples whose group both won and lost are preferred, since
    their advantage is not zero. The choice is a function of its input alone.
    """
    cells = _cells({"before": before, "after": after, "training": training})
    turned = _questions(cells[("before", False)]) & _questions(cells[("after", True)])
    chosen: list[Chosen] = []
    for phase, won in cycle(_ORDER):
        if len(chosen) >= count or not any(cells.values()):
            break
        candidates = cells[(phase, won)]
        if candidates:
            best = _best(candidates, chosen, phase, turned if (phase, won) in _ORDER[:2] else set())
            cells[(phase, won)] = [t for t in candidates if t is not best]
            chosen.append(Chosen(best, phase))
    return _side_by_side(chosen)


def _cells(phases: dict[Phase, Iterable[Trajectory]]) -> dict[_Cell, list[Trajectory]]:
    cells: dict[_Cell, list[Trajectory]] = {cell: [] for cell in _ORDER}
    for phase, trajectories in phases.items():
        played = list(trajectories)
        mixed = _mixed(played)
        kept = [t for t in played if t.question.id in mixed] or played
        kept.sort(key=_dullness)
        for won in (True, False):
            of_kind = [t for t in kept if t.correct is won]
            cells[(phase, won)] = of_kind or [t for t in played if t.correct is won]
    return cells


def _mixed(trajectories: list[Trajectory]) -> set[str]:
    """Questions that were both won and lost in this phase."""
    won = {t.question.id for t in trajectories if t.correct}
    return won & {t.question.id for t in trajectories if not t.correct}


def _dullness(trajectory: Trajectory) -> tuple[int, int, str, int]:
    """Small for trajectories with much to see; the rest makes the order total."""
    unjudged = sum(r.verdict is None for r in trajectory.search_rounds)
    seen = min(trajectory.num_searches, 3) + sum(redundant_rounds(trajectory))
    return (min(unjudged, 1), -seen, trajectory.question.id, trajectory.sample_id)


def _questions(trajectories: list[Trajectory]) -> set[str]:
    return {t.question.id for t in trajectories}


def _best(
    candidates: list[Trajectory], chosen: list[Chosen], phase: Phase, turned: set[str]
) -> Trajectory:
    """The first of ``candidates`` that adds most to what is chosen already."""
    hops = Counter(c.trajectory.question.hops for c in chosen if c.phase == phase)
    here = {c.trajectory.question.id for c in chosen if c.phase == phase}
    elsewhere = {c.trajectory.question.id for c in chosen if c.phase != phase}

    def cost(t: Trajectory) -> tuple[bool, bool, bool, int]:
        question = t.question.id
        completes_a_pair = question in elsewhere and question in turned
        return (
            question in here,
            not completes_a_pair,
            question not in turned,
            hops[t.question.hops],
        )

    return min(candidates, key=cost)  # the first among equals


def _side_by_side(chosen: list[Chosen]) -> list[Chosen]:
    """Trajectories of one question together, questions by their first appearance."""
    order: dict[str, int] = {}
    for c in chosen:
        order.setdefault(c.trajectory.question.id, len(order))
    phases = {"before": 0, "training": 1, "after": 2}
    return sorted(chosen, key=lambda c: (order[c.trajectory.question.id], phases[c.phase]))
