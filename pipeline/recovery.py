"""A learner that is new, or was lost, brought to where the run is: checkpoint, then journal.

    restore(version=7):   checkpoint of step 5 ──► journal of steps 6, 7 ──► digest as published

The journal holds all that an optimizer step consumes, so that the same machine computes the same
weights again, to the last bit. `RecoveringLearner` does it while the run goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from pipeline.checkpoint import CheckpointStore
from pipeline.errors import (
    ActorLostError,
    GleanerError,
    InfrastructureError,
    LateError,
    UserError,
)
from pipeline.journal import JournalView
from pipeline.pools import Learner
from pipeline.types import Sample

__all__ = ["RecoveringLearner", "ReplayError", "replay", "restore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ReplayError(GleanerError):
    """The journal does not lead to the weights that were published."""


async def restore(
    learner: Learner,
    *,
    version: int,
    checkpoints: CheckpointStore,
    journal: JournalView | None,
    on_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Bring a learner that holds the run's first policy to weight ``version``, proven by digest.

    Returns the version that it holds then: without a journal that of the newest checkpoint that is
    sound (0: there is none). Raises ReplayError where the journal does not lead to the weights that
    were published, and where no checkpoint is sound.
    """
    at = await _load_newest(learner, checkpoints, version)
    if journal is None:
        return at
    try:
        for step in range(at + 1, version + 1):
            await replay(learner, journal, step)
            on_step(step)
    except UserError as error:  # an entry is missing or damaged
        raise ReplayError(str(error)) from None
    if await learner.digest() != journal.digests.get(version):
        raise ReplayError(
            f"the steps after {at} lead to other weights than were published as version {version}: "
            "machine, code, libraries, ranks or threads are not those of the run"
        )
    return version


async def _load_newest(learner: Learner, checkpoints: CheckpointStore, version: int) -> int:
    """The step of the newest sound checkpoint up to ``version``, which the learner then holds; 0
    where there is no checkpoint, and nothing was loaded."""
    damaged = checkpoints.damaged()
    for checkpoint in reversed(checkpoints.all()):
        if checkpoint.step > version:
            continue
        try:
            await learner.load_checkpoint(checkpoint.learner)
            if await learner.digest() == checkpoint.digest:
                return checkpoint.step
            damaged.append(f"{checkpoint.directory} does not hold the weights that it says")
        except (ActorLostError, LateError):
            raise
        except InfrastructureError as error:
            damaged.append(f"{checkpoint.directory} cannot be loaded: {error}")
        logger.warning("%s", damaged[-1])
    if damaged:
        raise ReplayError("; ".join(damaged) + ": remove these, and resume again")
    return 0


async def replay(
    learner: Learner, journal: JournalView, step: int, minibatches: int | None = None
) -> None:
    """The optimizer steps of train step ``step``, or its first ``minibatches``."""
    for entry in itertools.islice(journal.entries(step), minibatches):
        await learner.train_step(entry.samples, entry.normaliser, entry.version)


class RecoveringLearner:
    """Implements ``pipeline.pools.Learner`` and what publishing needs over a learner group that may
    die: another one is started, restored to the very optimizer step, and asked again.

    ``start`` makes a group that holds the run's first policy. Until `recover_from` says what to
    restore from (a learner on GPUs, or a run without a journal, has nothing), an error passes
    through: the run must be resumed.
    """

    def __init__(
        self,
        group: Any,
        start: Callable[[], Awaitable[Any]],
        *,
        max_restarts: int,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._group, self._start, self._on_event = group, start, on_event
        self._restarts_left = max_restarts
        self._turn = asyncio.Lock()  # one recovery at a time
        self._checkpoints: CheckpointStore | None = None
        self._journal: Callable[[], JournalView] | None = None
        self._version = 0  # that the train step under way starts from, or the last one started from
        self._done = 0  # optimizer steps made since that version
        self.restarts = 0

    def recover_from(
        self, checkpoints: CheckpointStore, journal: Callable[[], JournalView], version: int
    ) -> None:
        """From now on a lost group is replaced; the present one holds ``version``. ``journal``
        reads it anew."""
        self._checkpoints, self._journal = checkpoints, journal
        self._version, self._done = version, 0

    async def train_step(
        self, samples: Sequence[Sample], normaliser: float, version: int = 0
    ) -> dict[str, float]:
        """See ``pipeline.pools.Learner``."""
        if version != self._version:
            self._version, self._done = version, 0
        metrics: dict[str, float] = await self._ask(
            lambda group: group.train_step(samples, normaliser, version)
        )
        self._done += 1
        return metrics

    async def logprobs(
        self, samples: Sequence[Sample], which: Literal["current", "reference"]
    ) -> list[np.ndarray]:
        """See ``pipeline.pools.Learner``."""
        return await self._ask(lambda group: group.logprobs(samples, which))

    async def export_policy(self, directory: Path) -> None:
        """See ``pipeline.pools.Learner``."""
        await self._ask(lambda group: group.export_policy(directory))

    async def save_checkpoint(self, directory: Path) -> None:
        """See ``pipeline.pools.Learner``. A group that dies over it is replaced, and the error
        raised: there is no checkpoint."""
        group = self._group
        try:
            await group.save_checkpoint(directory)
        except (ActorLostError, LateError) as error:
            await self._replace(group, error)
            raise InfrastructureError(
                f"the learner was lost over its checkpoint: {error}"
            ) from None

    async def load_checkpoint(self, directory: Path) -> None:
        """See ``pipeline.pools.Learner``."""
        await self._group.load_checkpoint(directory)

    async def digest(self) -> str:
        """See ``pipeline.pools.Learner``."""
        return await self._ask(lambda group: group.digest())

    async def stats(self) -> Mapping[str, float]:
        """See ``pipeline.pools.Learner``."""
        return await self._ask(lambda group: group.stats())

    async def weights(self, *, timeout_s: float) -> tuple[Any, str]:
        """See ``actors.weight_sync.WeightSource``."""
        return await self._ask(lambda group: group.weights(timeout_s=timeout_s))

    async def probe_logprobs(self, token_ids: np.ndarray, *, timeout_s: float) -> np.ndarray:
        """See ``actors.weight_sync.WeightSource``."""
        return await self._ask(lambda group: group.probe_logprobs(token_ids, timeout_s=timeout_s))

    async def send_weights(
        self, transport: str, version: int, hosts: Mapping[str, Any], *, timeout_s: float
    ) -> tuple[str, Mapping[str, Any]]:
        """See ``actors.weight_sync.GpuWeightSource``."""
        return await self._ask(
            lambda group: group.send_weights(transport, version, hosts, timeout_s=timeout_s)
        )

    @property
    def hosts(self) -> Mapping[str, Any]:
        """The ranks' handles by name."""
        hosts: Mapping[str, Any] = self._group.hosts
        return hosts

    async def stop(self) -> None:
        """End the ranks' processes."""
        await self._group.stop()

    async def _ask(self, call: Callable[[Any], Awaitable[T]]) -> T:
        while True:
            group = self._group
            try:
                return await call(group)
            except (ActorLostError, LateError) as error:
                await self._replace(group, error)

    async def _replace(self, lost: Any, error: InfrastructureError) -> None:
        async with self._turn:
            if self._group is not lost:
                return  # another call has seen to it
            if self._checkpoints is None or self._journal is None:
                raise error
            await lost.kill()
            while self._group is lost:
                if not self._restarts_left:
                    raise InfrastructureError(
                        f"the learner was lost again, and no restart is left: {error}"
                    )
                self._restarts_left -= 1
                logger.warning("the learner is started again: %s", error)
                self._on_event(f"the learner was lost ({error}); it is started again")
                try:
                    self._group = await self._restored(self._checkpoints, self._journal())
                except (ReplayError, UserError) as diverged:  # a resumption may have another way
                    raise InfrastructureError(str(diverged)) from None
                except InfrastructureError as again:
                    error = again
            self.restarts += 1
            self._on_event("the learner is back, with the weights that it had")

    async def _restored(self, checkpoints: CheckpointStore, journal: JournalView) -> Any:
        """A new group, at the optimizer step that the lost one had reached."""
        fresh = await self._start()
        try:
            await restore(fresh, version=self._version, checkpoints=checkpoints, journal=journal)
            await replay(fresh, journal, self._version + 1, self._done)
        except BaseException:
            await fresh.kill()
            raise
        return fresh
