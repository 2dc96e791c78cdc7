"""The trajectory buffer: slots that bound the work in flight, and the order that bounds its age.

A group is *admitted* (takes one of ``(max_staleness + 1) * groups_per_step`` slots), then finished,
filtered or failed. A group admitted at version v has a deadline: the train step that starts from
version ``v + max_staleness``. Nothing is ever dropped for being old or long; what is taken for
training is chosen so that every deadline holds, by one of two orders:

``admission``: strictly the oldest, by version and ticket. A group has at most ``slots - 1`` others
ahead of it.

    groups_per_step=2, max_staleness=1 -> 4 slots
    admitted at version 0: a b c d     a finished late: the step waits for a, then takes a b
    after the publish of version 1 two slots come back: e f are admitted at version 1
    the next step takes c d (staleness 1), the one after it e f (staleness <= 1)

``deadline``: the oldest that are finished, ahead of stragglers, as long as all that remain can
still be trained in time at ``groups_per_step`` a step; otherwise the learner waits for them.

    admitted at version 0: a b c d     a finished late: the step takes b c and leaves a d, which
    have the next step, their last; e f, admitted at version 1, cannot go ahead of them

Slots are counted in samples. With ``oversample`` a group is played with more of them than
``group_size``, as far as there is room, and keeps the first that end: the others take part of a
slot until the group is finished.

Every move of a group is in the ledger as well (``pipeline.ledger``), and a finished group is there
whole: `TrajectoryBuffer.restore` goes on from it after a death. Single event loop; only ``admit``
and ``take`` wait for more than the condition's lock and, on a full disk, for room.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.codec import decode, encode
from pipeline.errors import FullDiskError
from pipeline.ledger import Ledger
from pipeline.ledger_view import GroupState
from pipeline.types import Group

__all__ = ["Admission", "BufferCounts", "TakingOrder", "TrajectoryBuffer"]

TakingOrder = Literal["admission", "deadline"]

_FULL_DISK_S = 30.0  # until a checkpoint that fills the disk is given up, and removed
_RETRY_S = 0.2


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


@dataclass(frozen=True, slots=True)
class Admission:
    """A group's place in the order, and the oldest weight version that may sample a token of it."""

    ticket: int
    version: int
    extra: int = 0  # samples that it may play beyond its size


@dataclass(slots=True)
class _Outstanding:
    """An admitted group that is not taken yet."""

    admission: Admission
    group: Group | None = None  # None: not finished
    finished_at: float = 0.0

    @property
    def age(self) -> tuple[int, int]:
        """The place in the order of deadlines: oldest first."""
        return self.admission.version, self.admission.ticket


class TrajectoryBuffer:
    """Complete groups in the order of their deadlines, behind a slot budget."""

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_staleness: int,
        ledger: Ledger,
        order: TakingOrder = "admission",
        group_size: int = 1,
        oversample: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if groups_per_step < 1:
            raise ValueError(f"groups_per_step must be at least 1, got {groups_per_step}")
        if max_staleness < 0:
            raise ValueError(f"max_staleness must not be negative, got {max_staleness}")
        self.groups_per_step = groups_per_step
        self.num_slots = (max_staleness + 1) * groups_per_step
        self.counts = BufferCounts()
        self.version = 0  # of the weights in every engine
        self.wait_s = 0.0  # mean over the groups taken last: from finished to taken
        self._max_staleness, self._order = max_staleness, order
        self._group_size, self._oversample = group_size, oversample
        self._ledger, self._clock = ledger, clock
        self._outstanding: dict[int, _Outstanding] = {}  # by ticket
        self._training: list[int] = []
        self._interrupted: list[int] = []  # by a death, while they were trained
        self._changed = asyncio.Condition()

    @property
    def depth(self) -> int:
        """Finished groups that wait for the learner."""
        return sum(o.group is not None for o in self._outstanding.values())

    @property
    def free_slots(self) -> int:
        """Groups that may be admitted now."""
        return self._free_samples // self._group_size

    @property
    def _free_samples(self) -> int:
        slots = self.num_slots - len(self._outstanding) - len(self._training)
        rolling = (o.admission.extra for o in self._outstanding.values() if o.group is None)
        return slots * self._group_size - sum(rolling)

    async def wait_for_slot(self) -> None:
        """Wait until the next `admit` need not wait."""
        async with self._with_free_slot():
            pass

    @contextlib.asynccontextmanager
    async def _with_free_slot(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self.free_slots > 0)
            yield

    async def admit(self, question_id: str) -> Admission:
        """Wait for a free slot and take it. Tickets rise in admission order."""
        async with self._with_free_slot():
            ticket = self.counts.admitted
            await _written(lambda: self._ledger.admit(ticket, question_id, self.version))
            self.counts.admitted += 1
            return self._admission(ticket)

    def restore(self, version: int) -> None:
        """Go on from the ledger of a run that died, at weight ``version``; before anything else.

        Finished groups are here again, and the first `take` returns those whose training was
        interrupted. Groups that the ledger calls queued are to be issued again by `readmit`.
        """
        view, contents = self._ledger.view(), self._ledger.contents()
        found = view.counts()
        self.version = version
        self.counts = BufferCounts(
            admitted=len(view.rows),
            trained=found[GroupState.TRAINED],
            filtered=found[GroupState.FILTERED],
            failed=found[GroupState.FAILED],
        )
        for row in view.rows:
            if row.state in (GroupState.BUFFERED, GroupState.TRAINING):
                admission = Admission(row.ticket, row.admission_version)
                group = decode(contents[row.ticket], Group)
                finished_at = row.buffered_at or self._clock()
                self._outstanding[row.ticket] = _Outstanding(admission, group, finished_at)
        self._interrupted = [r.ticket for r in view.rows if r.state is GroupState.TRAINING]

    async def readmit(self, ticket: int) -> Admission:
        """`admit` for a group that is issued again."""
        async with self._with_free_slot():
            await _written(lambda: self._ledger.readmit(ticket, self.version))
            return self._admission(ticket)

    def _admission(self, ticket: int) -> Admission:
        extra = min(self._oversample, self._free_samples - self._group_size)
        admission = Admission(ticket, self.version, extra)
        self._outstanding[ticket] = _Outstanding(admission)
        return admission

    async def put(self, ticket: int, group: Group) -> None:
        """An admitted group is finished (and judged). Raises KeyError for an unknown ticket."""
        async with self._changed:
            outstanding = self._outstanding[ticket]
            if outstanding.group is not None:
                raise KeyError(f"group of ticket {ticket} was put twice")
            content = encode(group)
            await _written(lambda: self._ledger.buffer(ticket, content))
            outstanding.group, outstanding.finished_at = group, self._clock()
            self._changed.notify_all()

    async def filter(self, ticket: int) -> None:
        """A group without reward variance: its slot is free at once."""
        await self._drop(ticket, GroupState.FILTERED)
        self.counts.filtered += 1

    async def fail(self, ticket: int, reason: str) -> None:
        """A group that infrastructure lost for good: its slot is free at once."""
        await self._drop(ticket, GroupState.FAILED, reason)
        self.counts.failed += 1

    async def take(self) -> list[Group]:
        """Wait for ``groups_per_step`` groups that the order allows; take them for the next step.

        They keep their slots until :meth:`release`. Raises RuntimeError where the groups taken
        before have not been released.
        """
        if self._training:
            raise RuntimeError("the groups of the step before were not released")
        async with self._changed:
            await self._changed.wait_for(lambda: self._choice() is not None)
            chosen = self._choice() or []
            tickets = [o.admission.ticket for o in chosen]
            if not self._interrupted:
                await _written(lambda: self._ledger.train(tickets, self.version + 1))
            self._training, self._interrupted = tickets, []
            now = self._clock()
            self.wait_s = sum(now - o.finished_at for o in chosen) / len(chosen)
            for ticket in self._training:
                del self._outstanding[ticket]
            return [o.group for o in chosen if o.group is not None]

    async def release(self) -> None:
        """The next version is in every engine: the slots of the trained groups come back."""
        async with self._changed:
            await _written(lambda: self._ledger.move(self._training, GroupState.TRAINED))
            self.counts.trained += len(self._training)
            self._training = []
            self.version += 1
            self._changed.notify_all()

    async def _drop(self, ticket: int, state: GroupState, reason: str = "") -> None:
        async with self._changed:
            await _written(lambda: self._ledger.move([ticket], state, reason=reason))
            del self._outstanding[ticket]
            self._changed.notify_all()

    def _choice(self) -> list[_Outstanding] | None:
        """What the next step takes, oldest first; None where it has to wait."""
        if self._interrupted:
            return [o for o in self._by_age() if o.admission.ticket in self._interrupted]
        candidates = iter(self._by_age())
        if self._order == "deadline":
            candidates = (o for o in candidates if o.group is not None)
        chosen = list(itertools.islice(candidates, self.groups_per_step))
        if len(chosen) < self.groups_per_step or any(o.group is None for o in chosen):
            return None
        return chosen if self._rest_is_in_time(chosen) else None

    def lacking(self) -> list[int] | None:
        """Tickets of the oldest ``groups_per_step`` groups that are not finished; None where fewer
        than so many are admitted."""
        oldest = self._by_age()[: self.groups_per_step]
        if len(oldest) < self.groups_per_step:
            return None
        return [o.admission.ticket for o in oldest if o.group is None]

    def _by_age(self) -> list[_Outstanding]:
        return sorted(self._outstanding.values(), key=lambda o: o.age)

    def _rest_is_in_time(self, chosen: list[_Outstanding]) -> bool:
        """Whether all others, oldest first, can be trained by their deadlines in later steps.

        Groups admitted later cannot spoil that: their deadlines are later than any of these.
        """
        taken = {o.admission.ticket for o in chosen}
        rest = (o for o in self._by_age() if o.admission.ticket not in taken)
        return all(
            self.version + 1 + i // self.groups_per_step
            <= o.admission.version + self._max_staleness
            for i, o in enumerate(rest)
        )


async def _written(write: Callable[[], None]) -> None:
    """``write`` to the ledger; where the disk is full, again and again for a while."""
    deadline = time.monotonic() + _FULL_DISK_S
    while True:
        try:
            return write()
        except FullDiskError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_RETRY_S)
