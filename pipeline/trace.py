"""What every process of a run did when, as a Chrome trace: ``trace.json``.

Open it at https://ui.perfetto.dev (it stays in the browser) or chrome://tracing. One process of the
trace is an actor; what overlaps in it (several groups in one engine) has lanes. Times are
wall-clock times of each machine.
"""

from __future__ import annotations

import heapq
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.atomic import write_text

__all__ = ["Recorder", "Span", "chrome_trace", "write_trace"]

_MOST_SPANS = 200_000  # that one process keeps; the oldest go first
_US = 1e6


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from ``began`` to ``ended`` (Unix seconds). ``lane`` groups what does not
    overlap, e.g. the steps of an engine beside the calls to its actor."""

    name: str
    began: float
    ended: float
    lane: str = "calls"


class Recorder:
    """The spans of one process, bounded in number."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=_MOST_SPANS)
        self._offset = time.time() - time.monotonic()  # the clock of spans never jumps

    def now(self) -> float:
        """Unix seconds on the spans' clock."""
        return time.monotonic() + self._offset

    def add(self, name: str, began: float, lane: str = "calls") -> None:
        """Something that began at ``began`` ends now."""
        self._spans.append(Span(name, began, self.now(), lane))

    def spans(self) -> list[Span]:
        """All that are kept."""
        return list(self._spans)


def chrome_trace(spans: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """The trace of several actors, by name, in Chrome's JSON format ("complete" events).

    >>> trace = chrome_trace({"judge-0": [Span("judge", 1.0, 3.0), Span("judge", 2.0, 4.0)]})
    >>> [(e["ts"], e["dur"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "X"]
    [(0.0, 2000000.0, 0), (1000000.0, 2000000.0, 1)]
    """
    start = min((span.began for of_actor in spans.values() for span in of_actor), default=0.0)
    events: list[dict[str, Any]] = []
    for pid, (actor, of_actor) in enumerate(spans.items()):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": actor}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": pid,
                       "args": {"sort_index": pid}})  # fmt: skip
        first_lane = 0
        for lane in dict.fromkeys(span.lane for span in of_actor):
            placed = list(_placed([span for span in of_actor if span.lane == lane]))
            for span, place in placed:
                events.append(
                    {
                        "ph": "X",
                        "name": span.name,
                        "pid": pid,
                        "tid": first_lane + place,
                        "ts": (span.began - start) * _US,
                        "dur": (span.ended - span.began) * _US,
                    }
                )
            lanes = max((place for _, place in placed), default=-1) + 1
            for number in range(lanes):
                events.append({"ph": "M", "name": "thread_name", "pid": pid,
                               "tid": first_lane + number, "args": {"name": lane}})  # fmt: skip
            first_lane += lanes
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _placed(spans: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    """Each span with the lowest lane in which nothing else runs at that time."""
    free: list[int] = []
    running: list[tuple[float, int]] = []  # (end, lane)
    lanes = 0
    for span in sorted(spans, key=lambda s: (s.began, s.ended)):
        while running and running[0][0] <= span.began:
            heapq.heappush(free, heapq.heappop(running)[1])
        if not free:
            heapq.heappush(free, lanes)
            lanes += 1
        lane = heapq.heappop(free)
        heapq.heappush(running, (span.ended, lane))
        yield span, lane


def write_trace(path: Path, spans: Mapping[str, Sequence[Span]]) -> None:
    """Write it as JSON, whole or not at all."""
    write_text(path, json.dumps(chrome_trace(spans)))
