"""How fast a run could be, from what its stages cost alone; and where time went.

    T* = max( sum_s C_s / P,  max_s C_s / p_s,  N L_ext / concurrency_ext,  N L0 / slots )

C_s: core-seconds of stage s for the work done; P: cores; p_s: cores that s can use; N: number of
trajectories; L_ext: seconds that one waits for services outside; L0: seconds that one takes on an
idle system; slots: trajectories under way at most. The last term is Little's law: with so many
under way, each taking at least L0. phi = T* / T: 1 is perfect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.trace import Span

__all__ = ["Limit", "seconds_where"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The terms of T*, in seconds.

    >>> limit = Limit(cost_s={"generate": 12.0, "update": 6.0}, cores=2, threads={"generate": 1},
    ...               trajectories=100, outside_s=0.5, concurrency=50, unloaded_s=0.4, slots=50)
    >>> limit.terms()["work over cores"], limit.seconds, limit.binding
    (9.0, 12.0, 'generate alone')
    """

    cost_s: Mapping[str, float]  # core-seconds by stage
    cores: int
    threads: Mapping[str, int]  # that a stage can use; 1 where it is missing
    trajectories: float
    outside_s: float
    concurrency: float
    unloaded_s: float
    slots: float

    def terms(self) -> dict[str, float]:
        """Each bound by name."""
        alone = {f"{s} alone": c / self.threads.get(s, 1) for s, c in self.cost_s.items()}
        return {
            "work over cores": sum(self.cost_s.values()) / self.cores,
            **alone,
            "services outside": self.trajectories * self.outside_s / self.concurrency,
            "a trajectory's own time": self.trajectories * self.unloaded_s / self.slots,
        }

    @property
    def seconds(self) -> float:
        """T*."""
        return max(self.terms().values())

    @property
    def binding(self) -> str:
        """The term that it is."""
        terms = self.terms()
        return max(terms, key=terms.__getitem__)


def seconds_where(
    began: float,
    ended: float,
    *,
    all_of: Sequence[Sequence[Span]],
    none_of: Sequence[Sequence[Span]] = (),
) -> float:
    """How long between ``began`` and ``ended`` something of each of ``all_of`` went on and nothing
    of any of ``none_of``.

    >>> waits, works = [Span("wait", 0.0, 10.0)], [Span("a", 2.0, 5.0), Span("b", 4.0, 6.0)]
    >>> seconds_where(0.0, 8.0, all_of=[waits], none_of=[works])
    4.0
    """
    kinds = [*all_of, *none_of]
    wanted = [True] * len(all_of) + [False] * len(none_of)
    moments = sorted(
        (min(max(at, began), ended), kind, change)
        for kind, spans in enumerate(kinds)
        for span in spans
        for at, change in ((span.began, 1), (span.ended, -1))
    )
    running = [0] * len(kinds)
    total, since = 0.0, began
    for at, kind, change in [*moments, (ended, 0, 0)]:
        if [count > 0 for count in running] == wanted:
            total += at - since
        since = at
        running[kind] += change
    return total
