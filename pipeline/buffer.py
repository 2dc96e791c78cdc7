"""The trajectory buffer: slots that bound the work in flight, and the order that bounds its age.

A group is *admitted* (takes a slot), then finished, filtered or failed. Finished groups are
taken for training strictly in admission order; with ``(max_staleness + 1) * groups_per_step``
slots this bounds staleness exactly: a group admitted at version v has at most
``slots - 1`` others ahead of it, so it is in the train step that starts from version
``v + max_staleness`` at the latest. Nothing is ever dropped for being old or long.

    groups_per_step=2, max_staleness=1 -> 4 slots
    admitted at version 0: a b c d     a finished late: the step waits for a, then takes a b
    after the publish of version 1 two slots come back: e f are admitted at version 1
    the next step takes c d (staleness 1), the one after it e f (staleness <= 1)

Every move of a group is in the ledger as well (``pipeline.ledger``); the driver writes the
admission itself, because it knows the question. Single event loop; only ``reserve`` and ``take``
wait for more than the condition's lock.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from dataclasses import dataclass

from pipeline.ledger import GroupState, Ledger
from pipeline.types import Group

__all__ = ["BufferCounts", "TrajectoryBuffer"]


@dataclass(slots=True)
class BufferCounts:
    """Where every admitted group is. ``admitted = trained + filtered + failed + in_flight``."""

    admitted: int = 0
    trained: int = 0
    filtered: int = 0
    failed: int = 0

    @property
    def in_flight(self) -> int:
        """Admitted and not yet trained, filtered or failed (cancelled ones stay in flight)."""
        return self.admitted - self.trained - self.filtered - self.failed


class TrajectoryBuffer:
    """Complete groups in admission order, behind a slot budget."""

    def __init__(self, *, groups_per_step: int, max_staleness: int, ledger: Ledger) -> None:
        if groups_per_step < 1:
            raise ValueError(f"groups_per_step must be at least 1, got {groups_per_step}")
        if max_staleness < 0:
            raise ValueError(f"max_staleness must not be negative, got {max_staleness}")
        self.groups_per_step = groups_per_step
        self.num_slots = (max_staleness + 1) * groups_per_step
        self.counts = BufferCounts()
        self._ledger = ledger
        self._waiting: OrderedDict[int, Group | None] = OrderedDict()  # None: not finished
        self._training: set[int] = set()
        self._changed = asyncio.Condition()
        self._next_ticket = 0

    @property
    def depth(self) -> int:
        """Finished groups that wait for the learner."""
        return sum(group is not None for group in self._waiting.values())

    @property
    def free_slots(self) -> int:
        """Groups that may be admitted now."""
        return self.num_slots - len(self._waiting) - len(self._training)

    async def reserve(self) -> int:
        """Wait for a free slot and take it. Returns the ticket, rising in admission order."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.free_slots > 0)
            ticket = self._next_ticket
            self._next_ticket += 1
            self._waiting[ticket] = None
            self.counts.admitted += 1
            return ticket

    async def put(self, ticket: int, group: Group) -> None:
        """A reserved group is finished (and judged). Raises KeyError for an unknown ticket."""
        async with self._changed:
            if self._waiting[ticket] is not None:
                raise KeyError(f"group of ticket {ticket} was put twice")
            self._waiting[ticket] = group
            self._ledger.move([ticket], GroupState.BUFFERED)
            self._changed.notify_all()

    async def filter(self, ticket: int) -> None:
        """A group without reward variance: its slot is free at once."""
        await self._drop(ticket, GroupState.FILTERED)
        self.counts.filtered += 1

    async def fail(self, ticket: int, reason: str) -> None:
        """A group that infrastructure lost for good: its slot is free at once."""
        await self._drop(ticket, GroupState.FAILED, reason)
        self.counts.failed += 1

    async def take(self, step: int) -> list[Group]:
        """Wait for the ``groups_per_step`` oldest outstanding groups and take them for ``step``.

        They keep their slots until :meth:`release`. Raises RuntimeError where the groups taken
        before have not been released.
        """
        if self._training:
            raise RuntimeError("the groups of the step before were not released")
        async with self._changed:
            await self._changed.wait_for(self._step_is_ready)
            taken = [self._waiting.popitem(last=False) for _ in range(self.groups_per_step)]
            self._training = {ticket for ticket, _ in taken}
            self._ledger.move(sorted(self._training), GroupState.TRAINING, step=step)
            return [group for _, group in taken if group is not None]

    async def release(self) -> None:
        """The new weights are in every engine: the slots of the trained groups come back."""
        async with self._changed:
            self._ledger.move(sorted(self._training), GroupState.TRAINED)
            self.counts.trained += len(self._training)
            self._training = set()
            self._changed.notify_all()

    async def _drop(self, ticket: int, state: GroupState, reason: str = "") -> None:
        async with self._changed:
            del self._waiting[ticket]
            self._ledger.move([ticket], state, reason=reason)
            self._changed.notify_all()

    def _step_is_ready(self) -> bool:
        if len(self._waiting) < self.groups_per_step:
            return False
        oldest = itertools.islice(self._waiting.values(), self.groups_per_step)
        return all(group is not None for group in oldest)
