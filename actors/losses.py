"""How often the actors of a pool are lost. A place where too many are stays empty; where all places
are empty, the pool is lost, and with it the run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque

logger = logging.getLogger(__name__)

__all__ = ["Losses"]

_MAX_LOSSES, _WITHIN_S = 5, 600.0  # in one place: then it stays empty


class Losses:
    """Those of one pool, also of actors that Ray starts again."""

    def __init__(self, pool: str, num_places: int) -> None:
        self._pool, self._num_places = pool, num_places
        self._times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_MAX_LOSSES))
        self._empty: set[int] = set()
        self._all_empty = asyncio.Event()
        self.why = ""  # the last one was lost

    def count(self, place: int, reason: str) -> bool:
        """One more. Whether ``place`` is empty from now on."""
        self.why = reason
        times = self._times[place]
        times.append(time.monotonic())
        if len(times) < _MAX_LOSSES or times[-1] - times[0] >= _WITHIN_S:
            return False
        self.leave_empty(
            place,
            f"{_MAX_LOSSES} {self._pool} actors in the place of {self._pool}-{place} were "
            f"lost within {_WITHIN_S / 60:g} minutes; the last: {reason}",
        )
        return True

    def leave_empty(self, place: int, why: str) -> None:
        """Nobody takes the ``place`` any more."""
        self.why = why
        logger.error("%s", why)
        self._empty.add(place)
        if len(self._empty) == self._num_places:
            self._all_empty.set()

    async def of_all(self) -> str:
        """Wait until all places are empty. Why the last one is."""
        await self._all_empty.wait()
        return self.why
