"""Seconds that the learner really waited for a pool: the price of that pool in wall time.

A group that is being judged while others of the same step are still being played costs nothing.
Time counts as exposed to a pool while the learner waits for groups and every group that its next
step still lacks is at that pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline.watchdog import WAITING, Activity

__all__ = ["Exposure"]


class Exposure:
    """Adds up the seconds exposed to ``pool``. ``update`` is called at every move of a group or of
    the learner; ``lacking`` gives the tickets that the next step still lacks, None where some of
    them are not even admitted.

    >>> now, activity = [0.0], Activity(learner="waiting for groups")
    >>> exposure = Exposure(activity, lambda: [7], pool="judge", clock=lambda: now[0])
    >>> activity.group(7, "judge"); exposure.update(); now[0] = 2.0
    >>> activity.group(7, None); exposure.update(); exposure.take(), exposure.take()
    (2.0, 0.0)
    """

    def __init__(
        self,
        activity: Activity,
        lacking: Callable[[], Sequence[int] | None],
        *,
        pool: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._activity, self._lacking = activity, lacking
        self._pool, self._clock = pool, clock
        self._since: float | None = None
        self._seconds = 0.0

    def update(self) -> None:
        """Something moved."""
        now = self._clock()
        if self._since is not None:
            self._seconds += now - self._since
        self._since = now if self._is_exposed() else None

    def take(self) -> float:
        """Seconds since the last ``take``."""
        self.update()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _is_exposed(self) -> bool:
        if self._activity.learner != WAITING:
            return False
        lacking = self._lacking()
        if not lacking:
            return False
        return all(self._activity.groups.get(ticket) == self._pool for ticket in lacking)
