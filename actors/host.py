"""The one Ray actor class: a process that holds a plain object and calls its methods.

The components are plain Python and know nothing of Ray; this is the only place where
``ray.remote`` is applied. The object is made at the first call, not in the constructor, so that
an error while loading arrives as itself and not as "the actor died".
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from actors.health import Process, stacks_of_this_process, this_process
from actors.kept_warnings import KeptWarnings
from pipeline.errors import ActorLostError
from pipeline.failpoints import failpoint_environment
from pipeline.trace import Recorder, Span

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 1.0  # for the error to reach whoever called

__all__ = ["Host", "remote_host"]


class Host:
    """Holds one plain object; its asynchronous methods run concurrently in one event loop.

    Methods that are not coroutines run in a thread, so that a long one does not keep the
    others (above all ``ready`` and ``stats``) from answering.

    ``restarts``: Ray starts it again where it dies. Then whoever starts it awaits ``open`` before
    the first ``call``, so that a call which finds no object comes after a restart. Where the
    object says itself that it is lost (ActorLostError), the process ends, for Ray to do so.
    """

    def __init__(
        self, factory: Callable[..., Any], arguments: Mapping[str, Any], restarts: bool = False
    ) -> None:
        self._factory, self._arguments = factory, arguments
        self._restarts = restarts
        self._object: Any = None
        self._making: asyncio.Task[None] | None = None
        self._ends = False
        self._recorder = Recorder()
        self._warnings = KeptWarnings()

    async def open(self) -> Process:
        """Make the object, await its ``ready()`` where it has one, return which process this is.

        Happens once, also where the caller does not wait for its end; after a failure, or a
        restart by Ray, the next call begins it again.
        """
        self._check_lives()
        await asyncio.shield(self._made())
        return this_process()

    async def ping(self) -> Process:
        """Answers at once, whatever the object does."""
        return this_process()

    async def warnings(self) -> list[str]:
        """What our code in this process warned of since the last call."""
        return self._warnings.take()

    async def stacks(self) -> str:
        """What every thread of this process is doing, for a person."""
        return stacks_of_this_process()

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the object. Ray object references in ``args`` arrive resolved.

        After a restart by Ray, ActorLostError is raised while the object is made again, which may
        take minutes: others can do the work, and who has no others waits for ``open``. Where that
        failed, its error is raised.
        """
        self._check_lives()
        if self._object is None and self._restarts:
            failed = self._making.exception() if self._making and self._making.done() else None
            self._made()
            raise failed or ActorLostError("Ray started it again, and it is not ready yet")
        if self._object is None:
            await self.open()
        began = self._recorder.now()
        try:
            return await _call(getattr(self._object, method), *args)
        except ActorLostError:
            if self._restarts and not self._ends:  # it can no longer work: Ray starts it again
                self._ends = True
                asyncio.get_running_loop().call_later(_LAST_WORDS_S, _end_this_process)
            raise
        finally:
            self._recorder.add(method, began)

    def _check_lives(self) -> None:
        if self._ends:
            raise ActorLostError("it ends, and Ray starts it again")

    def _made(self) -> asyncio.Task[None]:
        """Ends when the object is there."""
        if self._making is None or (self._making.done() and self._object is None):
            self._making = asyncio.create_task(self._make())
            self._making.add_done_callback(_note_failure)
        return self._making

    async def _make(self) -> None:
        made = await asyncio.to_thread(self._factory, **self._arguments)
        if hasattr(made, "ready"):
            await _call(made.ready)
        self._object = made

    async def spans(self) -> list[Span]:
        """When it was called, and what the object tells of itself (``spans()``, where it has
        that)."""
        own: list[Span] = self._object.spans() if hasattr(self._object, "spans") else []
        return [*self._recorder.spans(), *own]


def _end_this_process() -> None:
    logger.error("this process ends: what it held can no longer work")
    os._exit(1)


def _note_failure(making: asyncio.Task[None]) -> None:
    """Who waits for it gets the error; perhaps nobody does."""
    if not making.cancelled() and (error := making.exception()) is not None:
        logger.warning("could not be made: %s", error)


async def _call(function: Callable[..., Any], *args: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    return await asyncio.to_thread(function, *args)


def remote_host(
    name: str,
    factory: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    num_cpus: float,
    num_gpus: float,
    environment: Mapping[str, str],
    max_concurrency: int,
    max_restarts: int = 0,
    placement: Any = None,
) -> Any:
    """Start a named Host and return its Ray handle (the process may still be starting).

    ``environment`` is in place before the process imports anything. ``placement`` is a Ray
    scheduling strategy.
    """
    import ray

    return (
        ray.remote(Host)
        .options(
            name=name,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_concurrency=max_concurrency,
            max_restarts=max_restarts,
            runtime_env={"env_vars": {**failpoint_environment(), **environment}},
            scheduling_strategy=placement or "DEFAULT",
        )
        .remote(factory, arguments, restarts=max_restarts != 0)
    )
