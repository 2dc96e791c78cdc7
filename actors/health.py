"""Whether an actor still answers, and the end of one that does not.

A dead actor is known by its next call. One that hangs (stopped, swapped out, in a deadlock) keeps
its calls until their deadlines: so each is asked every few seconds whether it is there, and one
that is silent for too long is ended. What follows is what follows any death.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from actors.calls import await_call
from pipeline.errors import GleanerError, InfrastructureError, LateError
from pipeline.trace import Span

__all__ = [
    "Health",
    "Process",
    "end_process",
    "spans_of",
    "stacks_of",
    "stacks_of_this_process",
    "this_process",
    "wait_until_back",
    "watch",
]

_BACK_POLL_S = 0.5
_STACKS_TIMEOUT_S = 10.0
_SAME_START_S = 5.0  # a process's start is reckoned from a clock that may be set


@dataclass(frozen=True, slots=True)
class Process:
    """One process of one machine, for ever (ids of processes are used again)."""

    pid: int
    created: float
    hostname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How often actors are asked (0: never), and how long one may be silent."""

    interval_s: float
    timeout_s: float


def this_process() -> Process:
    """The calling one."""
    import psutil

    return Process(os.getpid(), psutil.Process().create_time(), socket.gethostname())


def end_process(process: Process | None) -> None:
    """SIGKILL to a process of this machine, which also ends a stopped one. Else nothing."""
    import psutil

    if process is None or process.hostname != socket.gethostname():
        return
    with suppress(psutil.Error, ProcessLookupError):
        if abs(psutil.Process(process.pid).create_time() - process.created) < _SAME_START_S:
            os.kill(process.pid, signal.SIGKILL)


async def watch(
    health: Health,
    watched: Callable[[], Iterable[tuple[str, Any]]],
    on_answer: Callable[[str, Process], None],
    on_silence: Callable[[str, InfrastructureError], None],
) -> None:
    """Ask all of ``watched()`` (names and Ray handles of hosts) for ever. ``on_silence`` is told of
    one that is late (LateError) or dead."""

    async def ask(name: str, host: Any) -> None:
        try:
            try:
                answer = await _ping(name, host, health.timeout_s / 2)
            except LateError:  # once more: it may be this process that stood still
                answer = await _ping(name, host, health.timeout_s / 2)
        except LateError:
            on_silence(name, LateError(f"{name} was silent for {health.timeout_s:g} s"))
        except InfrastructureError as error:
            on_silence(name, error)
        else:
            on_answer(name, answer)

    while health.interval_s:
        await asyncio.sleep(health.interval_s)
        await asyncio.gather(*(ask(name, host) for name, host in watched()))


async def wait_until_back(name: str, host: Any, timeout_s: float) -> None:
    """Wait for an actor that Ray starts again. Raises InfrastructureError after ``timeout_s``, and
    the UserError of one that cannot be made again."""
    last = ""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await await_call(
                        name, "open", host.open.options(name=f"{name}.open").remote(),
                        timeout_s=timeout_s,
                    )  # fmt: skip
                    return
                except InfrastructureError as error:
                    last = f"; the last try: {error}"
                await asyncio.sleep(_BACK_POLL_S)
    except TimeoutError:
        raise InfrastructureError(
            f"{name} did not come back within {timeout_s:g} s{last}"
        ) from None


def stacks_of_this_process() -> str:
    """What every thread of it is doing, for a person."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
    )


async def stacks_of(name: str, host: Any) -> str:
    """Those of an actor, or why it does not say."""
    try:
        text: str = await await_call(
            name, "stacks", host.stacks.remote(), timeout_s=_STACKS_TIMEOUT_S
        )
        return text
    except GleanerError as error:
        return f"{error}\n"


async def spans_of(name: str, host: Any) -> list[Span]:
    """What an actor did when; nothing where it does not say."""
    try:
        spans: list[Span] = await await_call(
            name, "spans", host.spans.remote(), timeout_s=_STACKS_TIMEOUT_S
        )
        return spans
    except GleanerError:
        return []


async def _ping(name: str, host: Any, timeout_s: float) -> Process:
    reference = host.ping.options(name=f"{name}.ping").remote()
    answer: Process = await await_call(name, "ping", reference, timeout_s=timeout_s)
    return answer
