"""One remote call: a deadline, and a typed error that names the actor and what it was doing."""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.errors import (
    ActorLostError,
    GleanerError,
    InfrastructureError,
    LateError,
    StoppedError,
    UserError,
)

__all__ = ["await_call", "call_actor"]


async def call_actor(name: str, host: Any, method: str, *args: Any, timeout_s: float) -> Any:
    """Await ``method`` of the object that ``host`` holds; see `await_call` for what it raises."""
    reference = host.call.options(name=f"{name}.{method}").remote(method, *args)
    return await await_call(name, method, reference, timeout_s=timeout_s)


async def await_call(name: str, method: str, reference: Any, *, timeout_s: float) -> Any:
    """Await a Ray call. One that is late or no longer wanted is cancelled at the other end, too.

    Raises ActorLostError where the actor died, LateError after the deadline, InfrastructureError
    where the method raised anything else than a UserError, which passes through.
    """
    import ray

    try:
        async with asyncio.timeout(timeout_s):
            return await reference
    except TimeoutError:
        ray.cancel(reference)
        raise LateError(f"{name} did not finish {method!r} within {timeout_s:g} s") from None
    except asyncio.CancelledError:
        ray.cancel(reference)
        raise
    except ray.exceptions.RayTaskError as error:
        raise _translated(name, method, error) from error
    except ray.exceptions.RayError as error:
        raise ActorLostError(f"{name} was lost during {method!r}: {_first_line(error)}") from error


def _translated(name: str, method: str, error: Any) -> GleanerError:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, StoppedError):
        return StoppedError(str(cause))
    if isinstance(cause, UserError):
        return UserError(str(cause))
    message = f"{name} failed in {method!r}: {_first_line(cause)}"
    if isinstance(cause, ActorLostError):
        return ActorLostError(message)
    if isinstance(cause, InfrastructureError):
        return InfrastructureError(message)
    return InfrastructureError(f"{message} ({type(cause).__name__})\n{error}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
