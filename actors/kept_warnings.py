"""What an actor warns of, kept until the driver asks: its own log goes with Ray's session."""

from __future__ import annotations

import logging
from collections import deque

__all__ = ["KeptWarnings"]

_MOST = 20  # an endpoint that is down says the same a thousand times
_OF_OURS = ("actors", "pipeline")


class KeptWarnings(logging.Handler):
    """Keeps the last warnings of our own loggers in this process.

    >>> kept = KeptWarnings()
    >>> logging.getLogger("actors.example").warning("no answer from %s", "judge")
    >>> kept.take(), kept.take()
    (['no answer from judge'], [])
    >>> kept.close()
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[str] = deque(maxlen=_MOST)
        self._num = 0
        for name in _OF_OURS:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        self._lines.append(record.getMessage())
        self._num += 1

    def take(self) -> list[str]:
        """Those since the last call; of many the last, and how many more there were."""
        lines, more = list(self._lines), self._num - len(self._lines)
        self._lines.clear()
        self._num = 0
        return [f"({more} more before)", *lines] if more else lines

    def close(self) -> None:
        """Keep nothing more."""
        for name in _OF_OURS:
            logging.getLogger(name).removeHandler(self)
        super().close()
