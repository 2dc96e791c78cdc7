"""A pool of equal actors: start, dispatch to the least loaded, retry elsewhere, replace the dead.

    ActorPool (driver)   owns the actors: starts, replaces and stops them
    PoolClient           only calls them, also from other actors (actors/pool_client.py)

Every call has a deadline. A failed call is repeated on another actor, at most ``max_retries``
times. A dead actor of a stateless pool is restarted by Ray itself (``max_restarts``); where an
actor has state that a restart would lose (engines: the current weights), the pool starts a new
one and `ActorPool.admit` brings it up to date before it takes work. A place whose actors are lost
again and again, or do not come back, stays empty (actors/losses.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.calls import await_call, call_actor
from actors.health import Health, Process, end_process, wait_until_back, watch
from actors.host import remote_host
from actors.losses import Losses
from actors.pool_client import PoolClient, summary_of
from pipeline.errors import (
    ActorLostError,
    GleanerError,
    InfrastructureError,
    LateError,
    first_error,
)

logger = logging.getLogger(__name__)

__all__ = ["ActorPool", "Member", "PoolSpec"]


NO_HEALTH_CHECKS = Health(interval_s=0, timeout_s=0)
_MAX_TRIES, _NEXT_TRY_S = 3, 2.0  # of a replacement
_LISTEN_EVERY_S, _LISTEN_TIMEOUT_S = 5.0, 10.0  # to what actors warn of


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """What a pool is made of. ``members`` holds the constructor arguments of each actor."""

    name: str
    factory: Callable[..., Any]  # the plain class
    members: Sequence[Mapping[str, Any]]
    num_cpus: float  # an actor
    num_gpus: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    max_concurrency: int = 1000  # calls that one actor has in hand
    start_timeout_s: float
    request_timeout_s: float
    max_retries: int
    max_restarts: int = 0  # restarts by Ray, for actors without state; 0: the pool replaces
    health: Health = NO_HEALTH_CHECKS


@dataclass(slots=True, eq=False)
class Member:
    """One actor as the pool sees it."""

    name: str
    host: Any
    in_service: bool = False
    load: int = 0  # calls under way
    process: Process | None = None

    @property
    def pid(self) -> int:
        """The id of its process; 0 while it is not known."""
        return self.process.pid if self.process else 0


class ActorPool:
    """Owns the actors of one pool. Made by `ActorPool.start`."""

    def __init__(self, spec: PoolSpec, placements: Sequence[Any] = ()) -> None:
        self.spec = spec
        self.members: list[Member] = []
        self.replaced = 0  # actors replaced since the start
        #: Awaited with a fresh member before it takes work (the publisher sends it weights).
        self.admit: Callable[[Member], Awaitable[None]] | None = None
        self._placements = list(placements) or [None] * len(spec.members)
        self._changed = asyncio.Condition()
        self._replacing: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._hearing: asyncio.Task[None] | None = None  # what was asked for last
        self._returning: dict[str, asyncio.Task[None]] = {}  # that Ray starts again
        self._losses = Losses(spec.name, len(spec.members))
        self._generations = itertools.count(1)  # of replacements: their names differ

    @classmethod
    async def start(cls, spec: PoolSpec, placements: Sequence[Any] = ()) -> ActorPool:
        """Start all actors together and wait until each is ready.

        ``placements`` holds a Ray scheduling strategy for each actor. Raises InfrastructureError
        (or the UserError that an actor raised) and leaves nothing behind.
        """
        pool = cls(spec, placements)
        pool.members = [pool._launch(index) for index in range(len(spec.members))]
        try:
            async with asyncio.TaskGroup() as tasks:
                for member in pool.members:
                    tasks.create_task(pool._open(member))
        except* Exception as errors:
            await pool.stop()
            raise first_error(errors) from None
        for member in pool.members:
            member.in_service = True
        pool._watching = asyncio.create_task(
            watch(spec.health, pool._watched, pool._answered, pool._silent)
        )
        pool._listening = asyncio.create_task(pool._listen())
        return pool

    @property
    def in_service(self) -> list[Member]:
        """The members that take work."""
        return [member for member in self.members if member.in_service]

    @property
    def why_lost(self) -> str:
        """Why the actor that was lost last was."""
        return self._losses.why

    async def watch_losses(self) -> None:
        """Wait for ever. Raises InfrastructureError once every place is empty for good."""
        raise InfrastructureError(
            f"no {self.spec.name} actor is left in service; the last one: "
            f"{await self._losses.of_all()}"
        )

    def client(
        self,
        *,
        deadline_s: float | None = None,
        every: tuple[int, int] = (0, 1),
        waits: bool = True,
    ) -> PoolClient:
        """A client for use in other actors, of the whole pool or (``every=(i, n)``) of each n-th
        actor from the i-th on. ``deadline_s``: of a call with all its retries. ``waits``: where all
        were lost, for one that comes back."""
        import ray

        first, step = every
        return PoolClient(
            [member.name for member in self.members[first::step]],
            ray.get_runtime_context().namespace,
            timeout_s=self.spec.request_timeout_s,
            max_retries=self.spec.max_retries,
            return_timeout_s=self.spec.start_timeout_s if waits else 0.0,
            deadline_s=deadline_s,
        )

    async def call(self, method: str, *args: Any) -> Any:
        """Call ``method`` on the least loaded actor in service, on others when it fails."""
        failures: list[str] = []
        tried: set[str] = set()
        lost: set[str] = set()
        for attempt in range(1 + self.spec.max_retries):
            member = await self._least_loaded(tried)
            tried.add(member.name)
            last = attempt == self.spec.max_retries
            try:
                # Ray starts it again; before the last attempt another one may be lost as well
                if member.name in lost or (lost and last and self.spec.max_restarts):
                    await wait_until_back(member.name, member.host, self.spec.start_timeout_s)
                return await self.call_member(member, method, *args)
            except InfrastructureError as error:
                if isinstance(error, ActorLostError):
                    lost.add(member.name)
                failures.append(str(error))
        raise InfrastructureError(summary_of(method, failures))

    async def call_place(
        self, place: int, method: str, *args: Any, timeout_s: float | None = None
    ) -> Any:
        """Call ``method`` on the member in ``place``, or on the one that takes its place. One that
        is late is replaced: it may still be at the call."""
        failures: list[str] = []
        for _ in range(1 + self.spec.max_retries):
            await self.wait_replaced()
            member = self.members[place]
            if not member.in_service:
                break
            try:
                return await self.call_member(member, method, *args, timeout_s=timeout_s)
            except InfrastructureError as error:
                if isinstance(error, LateError):
                    self.retire(member, str(error))
                failures.append(str(error))
        raise InfrastructureError(summary_of(method, failures or [self.why_lost]))

    async def call_member(
        self, member: Member, method: str, *args: Any, timeout_s: float | None = None
    ) -> Any:
        """Call ``method`` on one actor, without a retry. A lost actor's replacement begins."""
        member.load += 1
        try:
            return await call_actor(
                member.name,
                member.host,
                method,
                *args,
                timeout_s=timeout_s or self.spec.request_timeout_s,
            )
        except ActorLostError as error:
            self.retire(member, str(error))
            raise
        finally:
            member.load -= 1
            await self._notify()

    async def broadcast(
        self,
        method: str,
        *args: Any,
        members: Sequence[Member] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Call ``method`` on every actor in service, or on ``members``: name -> result, or the
        InfrastructureError."""
        members = self.in_service if members is None else members
        results = await asyncio.gather(
            *(self.call_member(m, method, *args, timeout_s=timeout_s) for m in members),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, InfrastructureError):
                raise result
        return {member.name: r for member, r in zip(members, results, strict=True)}

    def retire(self, member: Member, reason: str) -> None:
        """Take an actor out of service, end its process, and start a new one in its place.

        Actors that Ray restarts by itself stay. Does nothing for a member already replaced.
        """
        if self.spec.max_restarts or member not in self.members or not member.in_service:
            return
        logger.warning("replacing %s: %s", member.name, reason)
        member.in_service = False
        _kill(member)
        place = self.members.index(member)
        if not self._losses.count(place, reason):
            self._replacing[member.name] = asyncio.create_task(self._replace(place, member.name))

    async def wait_replaced(self) -> None:
        """Wait until no replacement is under way."""
        while self._replacing:
            await asyncio.gather(*self._replacing.values())

    async def stop(self) -> None:
        """End every actor of the pool."""
        import ray

        running = (*self._replacing.values(), *self._returning.values())
        for task in (*running, self._watching, self._listening):
            if task is not None:
                task.cancel()
        if self._hearing is not None:
            await self._hearing  # actors have told it what they tell nobody else
        await self._log_warnings()
        for member in self.members:
            member.in_service = False
            ray.kill(member.host, no_restart=True)

    async def _least_loaded(self, tried: set[str]) -> Member:
        """A member in service, one not yet tried where there is one; waits for a replacement."""
        try:
            async with asyncio.timeout(self.spec.start_timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.in_service or not self._replacing)
        except TimeoutError:
            raise InfrastructureError(
                f"no {self.spec.name} actor came back within {self.spec.start_timeout_s:g} s"
            ) from None
        if not self.in_service:
            raise InfrastructureError(
                f"no {self.spec.name} actor is left in service; the last one: {self.why_lost}"
            )
        return min(self.in_service, key=lambda m: (m.name in tried, m.load))

    async def _replace(self, place: int, lost: str) -> None:
        """Start actors in ``place`` until one takes work, at most ``_MAX_TRIES`` times."""
        try:
            for tries_left in reversed(range(_MAX_TRIES)):
                fresh = self._launch(place, generation=next(self._generations))
                self.members[place] = fresh
                try:
                    await self._open(fresh)
                    if self.admit is not None:
                        await self.admit(fresh)
                    fresh.in_service = True  # no await since admit: no publish was missed
                    self.replaced += 1
                    return
                except GleanerError as error:
                    logger.error("%s, in the place of %s, failed: %s", fresh.name, lost, error)
                    _kill(fresh)
                    if not tries_left:
                        where = self._name(place)
                        why = f"no actor in the place of {where} could be used: {error}"
                        self._losses.leave_empty(place, why)
                await asyncio.sleep(_NEXT_TRY_S)
        finally:
            del self._replacing[lost]
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _name(self, place: int) -> str:
        return f"{self.spec.name}-{place}"

    def _launch(self, index: int, generation: int = 0) -> Member:
        spec = self.spec
        name = self._name(index) + (f".{generation}" if generation else "")
        host = remote_host(
            name,
            spec.factory,
            spec.members[index],
            num_cpus=spec.num_cpus,
            num_gpus=spec.num_gpus,
            environment=spec.environment,
            max_concurrency=spec.max_concurrency,
            max_restarts=spec.max_restarts,
            placement=self._placements[index],
        )
        return Member(name=name, host=host)

    async def _open(self, member: Member) -> None:
        """Wait until the object inside the actor is made and ready."""
        reference = member.host.open.options(name=f"{member.name}.open").remote()
        member.process = await await_call(
            member.name, "open", reference, timeout_s=self.spec.start_timeout_s
        )
        logger.info("%s is process %d", member.name, member.pid)

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(_LISTEN_EVERY_S)
            self._hearing = asyncio.create_task(self._log_warnings())
            await asyncio.shield(self._hearing)

    async def _log_warnings(self) -> None:
        """What actors warned of comes into this process's log."""

        async def ask(member: Member) -> None:
            with suppress(InfrastructureError):
                lines = await await_call(
                    member.name, "warnings", member.host.warnings.remote(),
                    timeout_s=_LISTEN_TIMEOUT_S,
                )  # fmt: skip
                for line in lines:
                    logger.info("%s warns: %s", member.name, line)

        await asyncio.gather(*(ask(member) for member in self.in_service))

    def _watched(self) -> list[tuple[str, Any]]:
        return [(member.name, member.host) for member in self.in_service]

    def _answered(self, name: str, process: Process) -> None:
        for place, member in enumerate(self.members):
            if member.name == name and member.process != process:  # Ray started it again
                ended, member.process = member.pid, process
                logger.info("%s is process %d now", name, process.pid)
                if self._losses.count(place, f"its process {ended} ended"):
                    self._end(member)
                else:
                    self._wait_for(place, member)

    def _silent(self, name: str, error: InfrastructureError) -> None:
        for place, member in enumerate(self.members):
            if member.name != name:
                continue
            if not self.spec.max_restarts:
                self.retire(member, str(error))
                continue
            if isinstance(error, LateError):  # else Ray is at it
                logger.warning("ending the process of %s: %s", name, error)
                end_process(member.process)
            self._wait_for(place, member)

    def _wait_for(self, place: int, member: Member) -> None:
        """Ray starts an actor again. Where it is not ready by its deadline, its place stays
        empty."""

        async def wait() -> None:
            try:
                await wait_until_back(member.name, member.host, self.spec.start_timeout_s)
            except GleanerError as error:
                self._losses.leave_empty(place, str(error))
                self._end(member)
                await self._notify()
            finally:
                del self._returning[member.name]

        if member.name not in self._returning:
            self._returning[member.name] = asyncio.create_task(wait())

    def _end(self, member: Member) -> None:
        """Ray must not start it again."""
        member.in_service = False
        _kill(member)


def _kill(member: Member) -> None:
    import ray

    ray.kill(member.host, no_restart=True)
    end_process(member.process)  # a stopped process does not obey Ray
