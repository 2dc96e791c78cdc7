"""The one Ray actor class: a process that holds a plain object and calls its methods.

The components are plain Python and know nothing of Ray; this is the only place where
``ray.remote`` is applied. The object is made at the first call, not in the constructor, so that
an error while loading arrives as itself and not as "the actor died".
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from actors.health import Process, stacks_of_this_process, this_process
from pipeline.failpoints import failpoint_environment
from pipeline.trace import Recorder, Span

__all__ = ["Host", "remote_host"]


class Host:
    """Holds one plain object; its asynchronous methods run concurrently in one event loop.

    Methods that are not coroutines run in a thread, so that a long one does not keep the
    others (above all ``ready`` and ``stats``) from answering.
    """

    def __init__(self, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._factory, self._arguments = factory, arguments
        self._object: Any = None
        self._opening = asyncio.Lock()
        self._recorder = Recorder()

    async def open(self) -> Process:
        """Make the object, await its ``ready()`` where it has one, return which process this is.

        Happens once; after a restart by Ray the next call does it again.
        """
        async with self._opening:
            if self._object is None:
                made = await asyncio.to_thread(self._factory, **self._arguments)
                if hasattr(made, "ready"):
                    await _call(made.ready)
                self._object = made
        return this_process()

    async def ping(self) -> Process:
        """Answers at once, whatever the object does."""
        return this_process()

    async def stacks(self) -> str:
        """What every thread of this process is doing, for a person."""
        return stacks_of_this_process()

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the object. Ray object references in ``args`` arrive resolved."""
        if self._object is None:
            await self.open()
        began = self._recorder.now()
        try:
            return await _call(getattr(self._object, method), *args)
        finally:
            self._recorder.add(method, began)

    async def spans(self) -> list[Span]:
        """When it was called, and what the object tells of itself (``spans()``, where it has
        that)."""
        own: list[Span] = self._object.spans() if hasattr(self._object, "spans") else []
        return [*self._recorder.spans(), *own]


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
        .remote(factory, arguments)
    )
