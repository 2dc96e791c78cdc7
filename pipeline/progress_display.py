"""How progress is drawn: a live display on a terminal, plain lines in a log, or nothing.

Every line also goes to the logger ``gleaner.progress`` at INFO, for the run's log file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["LOGGER_NAME", "BarDisplay", "PlainDisplay", "ProgressDisplay", "SilentDisplay"]

LOGGER_NAME = "gleaner.progress"
_PLAIN_EVERY_S = 10.0  # least time between two plain lines of one phase
_log = logging.getLogger(LOGGER_NAME)


class ProgressDisplay(Protocol):
    """How progress is drawn. ``key`` names the bar; a bar is opened, updated, closed."""

    def open(self, key: int, title: str, total: int | None) -> None:
        """A new bar."""
        ...

    def update(self, key: int, done: int, note: str) -> None:
        """So many done, and a remark beside the bar."""
        ...

    def line(self, text: str) -> None:
        """A line that stays."""
        ...

    def close(self, key: int) -> None:
        """The bar is done."""
        ...

    def start(self) -> None:
        """Begin to draw."""
        ...

    def stop(self) -> None:
        """Stop drawing, leave the terminal as it was."""
        ...


class SilentDisplay:
    """Draws nothing; lines still reach the log."""

    def open(self, key: int, title: str, total: int | None) -> None: ...

    def update(self, key: int, done: int, note: str) -> None: ...

    def line(self, text: str) -> None:
        _log.info(text)

    def close(self, key: int) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class PlainDisplay(SilentDisplay):
    """Lines in a log: phases every tenth part, at most one line in ten seconds."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._bars: dict[int, tuple[str, int | None, int, float]] = {}

    def open(self, key: int, title: str, total: int | None) -> None:
        self._bars[key] = (title, total, 0, self._clock())
        self.line(f"{title}: begins" + ("" if total is None else f", {total} in all"))

    def update(self, key: int, done: int, note: str) -> None:
        title, total, shown, since = self._bars[key]
        step = max(1, (total or 0) // 10)
        if done - shown < step or self._clock() - since < _PLAIN_EVERY_S:
            return
        self._bars[key] = (title, total, done, self._clock())
        of = "" if total is None else f" of {total}"
        self.line(f"{title}: {done}{of}" + (f" ({note})" if note else ""))

    def line(self, text: str) -> None:
        super().line(text)
        print(text, file=self._stream, flush=True)

    def close(self, key: int) -> None:
        del self._bars[key]


class BarDisplay(SilentDisplay):
    """A live display by rich: bars with a remark below each; lines scroll above them."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TaskID,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as RichProgress

        self._tasks: dict[int, TaskID] = {}
        self._notes: dict[int, str] = {}
        console = Console(file=stream, highlight=False)
        self._bars = RichProgress(
            TextColumn("[bold]{task.description}", markup=True),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
        )
        self._live = Live(
            get_renderable=self._render, console=console, transient=True, refresh_per_second=4
        )

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        notes = [Text("  " + note, style="dim") for note in self._notes.values() if note]
        return Group(self._bars.get_renderable(), *notes)

    def open(self, key: int, title: str, total: int | None) -> None:
        self._tasks[key] = self._bars.add_task(title, total=total)
        self._notes[key] = ""

    def update(self, key: int, done: int, note: str) -> None:
        self._bars.update(self._tasks[key], completed=done)
        self._notes[key] = note

    def line(self, text: str) -> None:
        super().line(text)
        self._live.refresh()
        self._live.console.print(text, markup=False, soft_wrap=True)

    def close(self, key: int) -> None:
        self._bars.remove_task(self._tasks.pop(key))
        del self._notes[key]

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()
