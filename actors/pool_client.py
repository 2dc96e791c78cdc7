"""Calls to the actors of a pool, from any process of the cluster: the least loaded first, others
where it fails. Small and picklable: it travels into other actors."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any

from actors.calls import call_actor
from actors.health import wait_until_back
from pipeline.errors import ActorLostError, InfrastructureError

__all__ = ["PoolClient", "summary_of"]


_FAVOUR = 16  # calls that an actor may have under way more than others and still be preferred


class PoolClient:
    """Calls the actors of a pool, from any process of the cluster.

    Actors are found by name, so a client that was pickled into another actor survives the
    replacement of those it calls. ``return_timeout_s`` 0: lost actors are not waited for.
    ``deadline_s``: of a call with all its retries and waiting. Where the caller has a deadline of
    its own this must be shorter, or the caller's error would name the caller.
    """

    def __init__(
        self,
        names: Sequence[str],
        namespace: str,
        *,
        timeout_s: float,
        max_retries: int,
        return_timeout_s: float,
        deadline_s: float | None = None,
    ) -> None:
        self._names, self._namespace = tuple(names), namespace
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self._return_timeout_s, self._deadline_s = return_timeout_s, deadline_s
        self._load = dict.fromkeys(self._names, 0)
        self._hosts: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        state = (
            *(self._names, self._namespace, self._timeout_s, self._max_retries),
            *(self._return_timeout_s, self._deadline_s),
        )
        return _restore_client, state

    async def call(self, method: str, *args: Any, like: str = "") -> Any:
        """Call ``method`` on the least loaded actor, on others when it fails. Where all were lost,
        one that comes back is waited for (see above). Calls with the same text ``like`` go to the
        same actor, which computes what they share once, unless it is clearly busier than others.

        Raises InfrastructureError with every attempt's reason; a UserError passes through.
        """
        failures: list[str] = []
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._tried(failures, method, args, like)
        except TimeoutError:
            before = f"; before: {'; then '.join(failures)}" if failures else ""
            raise InfrastructureError(
                f"{method!r} was not answered by {' or '.join(self._names)} within "
                f"{self._deadline_s:g} s{before}"
            ) from None

    async def _tried(self, failures: list[str], method: str, args: Sequence[Any], like: str) -> Any:
        tried: list[str] = []
        lost: set[str] = set()
        waits = self._return_timeout_s > 0
        for attempt in range(1 + self._max_retries):
            left = [name for name in self._names if waits or name not in lost]
            if not left:
                break
            name = min(left, key=lambda n: (tried.count(n), self._load[n] - self._favour(n, like)))
            tried.append(name)
            self._load[name] += 1
            try:
                # before the last attempt also another one: it may be lost as well
                if name in lost or (lost and waits and attempt == self._max_retries):
                    await wait_until_back(name, self._host(name), self._return_timeout_s)
                return await call_actor(
                    name, self._host(name), method, *args, timeout_s=self._timeout_s
                )
            except InfrastructureError as error:
                if isinstance(error, ActorLostError):
                    lost.add(name)
                self._hosts.pop(name, None)
                failures.append(str(error))
            finally:
                self._load[name] -= 1
        raise InfrastructureError(summary_of(method, failures))

    def _favour(self, name: str, like: str) -> int:
        home = zlib.crc32(like.encode(errors="replace")) % len(self._names)
        return _FAVOUR if like and name == self._names[home] else 0

    def _host(self, name: str) -> Any:
        import ray

        try:
            if name not in self._hosts:
                self._hosts[name] = ray.get_actor(name, namespace=self._namespace)
            return self._hosts[name]
        except ValueError:
            raise ActorLostError(f"{name} does not exist (any more)") from None


def _restore_client(
    names: Sequence[str],
    namespace: str,
    timeout_s: float,
    max_retries: int,
    return_timeout_s: float,
    deadline_s: float | None,
) -> PoolClient:
    return PoolClient(
        names,
        namespace,
        timeout_s=timeout_s,
        max_retries=max_retries,
        return_timeout_s=return_timeout_s,
        deadline_s=deadline_s,
    )


def summary_of(method: str, failures: Sequence[str]) -> str:
    return f"{method!r} failed {len(failures)} times: " + "; then ".join(failures)
