"""What a person sees while a run runs: a live display on a terminal, plain lines elsewhere.

``open_progress(mode)`` gives one of three displays behind the same protocol. Long phases
(evaluation, embedding) and training both report here. Every line also goes to the logger
``gleaner.progress`` at INFO, for the run's log file; a console handler leaves them out with
the filter ``not_progress``, since the display has shown them already.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self

from pipeline.errors import UserError
from pipeline.progress_display import (
    LOGGER_NAME,
    BarDisplay,
    PlainDisplay,
    ProgressDisplay,
    SilentDisplay,
)
from pipeline.step_record import StepRecord

__all__ = [
    "Phase",
    "Progress",
    "TimeLeft",
    "Training",
    "format_duration",
    "not_progress",
    "open_progress",
    "step_line",
]

MODES = ("auto", "bar", "plain", "none")


class TimeLeft:
    """Remaining seconds, from the mean of the last eight steps and an optional time limit."""

    def __init__(
        self,
        total: int,
        *,
        limit_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._limit_s = limit_s
        self._clock = clock
        self._began = clock()
        self._times = [(0, self._began)]

    def done(self, steps: int) -> None:
        """So many steps are done by now."""
        self._times = [*self._times[-8:], (steps, self._clock())]

    def seconds(self) -> float | None:
        """Seconds left, ``None`` before the first step is done."""
        (first, since), (last, now) = self._times[0], self._times[-1]
        if last == first:
            return None
        left = (self._total - last) * (now - since) / (last - first)
        if self._limit_s:
            left = min(left, self._limit_s - (now - self._began))
        return max(0.0, left - (self._clock() - now))


class Phase:
    """One phase with a bar: ``with progress.phase(...) as phase: phase.advance()``."""

    def __init__(self, display: ProgressDisplay, key: int, title: str, total: int | None) -> None:
        self._display, self._key = display, key
        self._title, self._total = title, total
        self._done = 0
        self._note = ""
        self._began = time.monotonic()

    def advance(self, number: int = 1, note: str | None = None) -> None:
        """``number`` more are done; ``note`` is shown beside the bar until the next one."""
        self._done += number
        self.note(self._note if note is None else note)

    def reach(self, done: int) -> None:
        """``done`` are done in all (fits ``on_progress`` callbacks)."""
        self.advance(done - self._done)

    def note(self, note: str) -> None:
        """Show a remark without advancing, e.g. "learner waits for groups, 9 of 16"."""
        self._note = note
        self._display.update(self._key, self._done, note)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._display.line(text)

    def __enter__(self) -> Self:
        self._display.open(self._key, self._title, self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.close(self._key)
        outcome = "done" if kind is None else "stopped"
        took = format_duration(time.monotonic() - self._began)
        self._display.line(f"{self._title}: {outcome}, {self._done} in {took}")


class Training:
    """The training phase: a bar over the steps and one line a step."""

    def __init__(self, phase: Phase, total: int, limit_s: float) -> None:
        self._phase, self._total = phase, total
        self._left = TimeLeft(total, limit_s=limit_s)
        self._filtered = self._failed = 0.0

    def record(self, record: StepRecord) -> None:
        """Show a finished step, read from its metrics by name."""
        self._left.done(record.step)
        self._filtered += record.metrics.get("buffer/filtered", 0.0)
        self._failed += record.metrics.get("buffer/failed", 0.0)
        self._phase.line(step_line(record, self._total, self._left.seconds()))
        self._phase.reach(record.step)
        self._phase.note(self._so_far())

    def _so_far(self) -> str:
        """Totals and the time left, for the remark below the bar."""
        dropped = f"groups filtered {self._filtered:.0f}, failed {self._failed:.0f} so far"
        left_s = self._left.seconds()
        return dropped if left_s is None else f"{dropped}; {format_duration(left_s)} left"

    def __enter__(self) -> Self:
        self._phase.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._phase.__exit__(kind, error, trace)


class Progress:
    """The run's progress. Use it in a ``with`` block; phases may be nested or concurrent."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display
        self._next_key = 0

    def phase(self, title: str, total: int | None = None) -> Phase:
        """A phase of ``total`` things (``None``: unknown)."""
        self._next_key += 1
        return Phase(self._display, self._next_key, title, total)

    def training(self, steps: int, *, limit_s: float = 0.0) -> Training:
        """The training phase of ``steps`` steps, stopped after ``limit_s`` seconds if not 0."""
        return Training(self.phase("training", steps), steps, limit_s)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._display.line(text)

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.stop()


def open_progress(mode: str = "auto", *, stream: IO[str] | None = None) -> Progress:
    """The display that ``tracker.progress`` asks for; ``auto`` is a bar on a terminal.

    Raises UserError on an unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"tracker.progress={mode} is unknown: choose one of {', '.join(MODES)}")
    out = sys.stdout if stream is None else stream
    if mode == "auto":
        mode = "bar" if out.isatty() else "plain"
    if mode == "none":
        return Progress(SilentDisplay())
    return Progress(BarDisplay(out) if mode == "bar" else PlainDisplay(out))


def step_line(record: StepRecord, total: int, left_s: float | None) -> str:
    """One train step in one line; metrics that were not measured are left out.

    >>> step_line(StepRecord(step=3, version=3, elapsed_s=60.0,
    ...     metrics={"reward/mean": 0.5, "learner/wait_s": 1.25}), 30, 540.0)
    'step 3/30  reward 0.500  learner waited 1.2 s  9 min 0 s left'
    """
    parts = [f"step {record.step}/{total}"]
    for name, template in _SHOWN:
        value = record.metrics.get(name, math.nan)
        if not math.isnan(value):
            parts.append(template.format(value))
    if left_s is not None:
        parts.append(f"{format_duration(left_s)} left")
    return "  ".join(parts)


_SHOWN = (
    ("reward/mean", "reward {:.3f}"),
    ("rollout/searches_per_question", "searches {:.2f}"),
    ("rollout/redundant_searches", "redundant {:.2f}"),
    ("buffer/staleness_mean", "staleness {:.2f}"),
    ("buffer/staleness_max", "(max {:.0f})"),
    ("learner/wait_s", "learner waited {:.1f} s"),
    ("learner/update_s", "updated {:.1f} s"),
    ("buffer/filtered", "filtered {:.0f}"),
    ("buffer/failed", "failed {:.0f}"),
)


def format_duration(seconds: float) -> str:
    """
    >>> format_duration(7.24), format_duration(75), format_duration(3720)
    ('7.2 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def not_progress(record: logging.LogRecord) -> bool:
    """A logging filter for console handlers: leaves out what the display has shown."""
    return record.name != LOGGER_NAME
