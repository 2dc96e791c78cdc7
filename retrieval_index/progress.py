"""Progress over passages: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["PassageProgress", "format_duration"]


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds as people read them.

    >>> format_duration(59.6), format_duration(3725)
    ('1:00', '1:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class PassageProgress:
    """Shows passages done, passages/s and time left; a context manager.

    ``what`` is done to them; ``total`` counts those to do (None: nobody knows how many). ``brief``:
    a log hears nothing of what takes less time than a line is for.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        enabled: bool = True,
        line_every_s: float = 15.0,
        brief: bool = False,
    ) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._enabled = enabled and total != 0
        self._line_every_s = line_every_s
        self._silent = brief  # until the first line
        self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None  # when passages first came, and how many
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> PassageProgress:
        self._last_line = time.monotonic()
        if self._enabled and sys.stderr.isatty():
            self._bar = _make_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, rate="")
        return self

    def advance(self, passages: int) -> None:
        """Count finished passages and show it if it is time to."""
        self._done += passages
        if not self._enabled or self._done == 0:
            return
        if self._first is None:
            self._first = (time.monotonic(), self._done)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{self.rate:.0f} passages/s")
        elif time.monotonic() - self._last_line >= self._line_every_s:
            self._last_line = time.monotonic()
            self._silent = False
            self._print_line()

    @property
    def rate(self) -> float:
        """Passages per second since the first ones came (loading the model does not count)."""
        if self._first is None:
            return 0.0
        began, done_then = self._first
        return (self._done - done_then) / max(time.monotonic() - began, 1e-9)

    def _print_line(self) -> None:
        rate = self.rate
        of = "" if self._total is None else f" of {self._total:,}"
        line = f"{self._what}: {self._done:,}{of} passages"
        if rate > 0:
            line += f", {rate:.0f} passages/s"
        if rate > 0 and self._total is not None:
            line += f", {format_duration((self._total - self._done) / rate)} left"
        print(line, file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._enabled and kind is None and not self._silent:
            self._print_line()


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
