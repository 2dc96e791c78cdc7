"""Micro-batching: concurrent searches share one call of a blocking search function.

    search(a) ─┐
    search(b) ─┼─► queue ─► one batch: full, or waited long enough ─► thread
    search(c) ─┘

While a batch runs, the next one gathers. Everything happens on one event loop; only the blocking
function runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from retrieval_index.errors import OverloadError

__all__ = ["MicroBatcher"]

Q = TypeVar("Q")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Request(Generic[Q, T]):
    queries: Sequence[Q]
    top_k: int
    answer: asyncio.Future[list[T]]


class MicroBatcher(Generic[Q, T]):
    """Runs ``search(queries, top_k) -> one result a query`` for many callers at once.

    A batch holds requests of one ``top_k`` (the oldest one's) in order of arrival, up to
    ``max_batch`` queries or what came within ``max_wait_ms``. A request is never split: a larger
    one goes alone. Where a shared batch fails, its requests are tried one by one, so that a caller
    sees the exception of its own queries only. Where more than ``max_waiting`` queries would wait
    (0: no limit), OverloadError.
    """

    def __init__(
        self,
        search: Callable[[Sequence[Q], int], list[T]],
        *,
        max_batch: int = 32,
        max_wait_ms: float = 2.0,
        max_waiting: int = 0,
    ) -> None:
        self._search = search
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_ms / 1000
        self._waiting: deque[_Request[Q, T]] = deque()
        self._enough: asyncio.Event | None = None  # set when a full batch waits
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
        self.batches = 0  # calls of the search function since the start

    async def search(self, queries: Sequence[Q], top_k: int) -> list[T]:
        """The results of ``queries``; raises what the search function raises for them."""
        if not queries:
            return []
        if self._max_waiting and self.num_waiting + len(queries) > self._max_waiting:
            raise OverloadError(
                f"{self.num_waiting} queries wait already, the limit is {self._max_waiting}; try "
                "again later, or start more servers"
            )
        request: _Request[Q, T] = _Request(
            queries, top_k, asyncio.get_running_loop().create_future()
        )
        self._waiting.append(request)
        if self._enough is not None and self.num_waiting >= self._max_batch:
            self._enough.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
            self._runner.add_done_callback(self._release)
        return await request.answer

    @property
    def num_waiting(self) -> int:
        """Queries that are not in a batch yet."""
        return sum(len(request.queries) for request in self._waiting)

    async def _run(self) -> None:
        """Serve batches until nobody waits."""
        while self._waiting:
            await self._gather()
            batch = self._next_batch()
            if batch:
                await self._serve(batch)

    def _release(self, ended: asyncio.Task[None]) -> None:
        """Nobody waits for ever where the runner ended before its time."""
        while ended is self._runner and self._waiting:
            self._waiting.popleft().answer.cancel()

    async def _gather(self) -> None:
        """Return once a full batch waits, or the first request has waited long enough."""
        if self.num_waiting >= self._max_batch or self._max_wait_s <= 0:
            return
        self._enough = asyncio.Event()
        try:
            async with asyncio.timeout(self._max_wait_s):
                await self._enough.wait()
        except TimeoutError:
            return
        finally:
            self._enough = None

    def _next_batch(self) -> list[_Request[Q, T]]:
        """Take the oldest request and those of its ``top_k`` behind it; others keep their places,
        and those that were cancelled are dropped."""
        batch: list[_Request[Q, T]] = []
        left: deque[_Request[Q, T]] = deque()
        size, full = 0, False
        for request in self._waiting:
            if request.answer.done():
                continue
            alike = not batch or request.top_k == batch[0].top_k
            full |= alike and bool(batch) and size + len(request.queries) > self._max_batch
            if full or not alike:
                left.append(request)
            else:
                batch.append(request)
                size += len(request.queries)
        self._waiting = left
        return batch

    async def _serve(self, batch: list[_Request[Q, T]]) -> None:
        queries = [query for request in batch for query in request.queries]
        loop = asyncio.get_running_loop()
        self.batches += 1
        try:
            results = await loop.run_in_executor(
                self._thread, self._search, queries, batch[0].top_k
            )
        except asyncio.CancelledError:  # the loop ends
            for request in batch:
                request.answer.cancel()
            raise
        except Exception as error:  # handed to the caller that caused it
            if len(batch) > 1:
                for request in batch:
                    await self._serve([request])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.queries)
            if not request.answer.done():
                request.answer.set_result(results[start:end])
            start = end

    def close(self) -> None:
        """Let the thread end once its batch is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)
