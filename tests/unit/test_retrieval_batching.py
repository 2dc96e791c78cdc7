"""Micro-batching: who shares a batch with whom, and who sees whose errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from retrieval_index.batching import MicroBatcher


class Recorder:
    """A blocking search that upper-cases, refuses ``bad``, and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self.threads: set[int] = set()

    def __call__(self, queries: Sequence[str], top_k: int) -> list[str]:
        self.calls.append((list(queries), top_k))
        self.threads.add(threading.get_ident())
        if "bad" in queries:
            raise ValueError("bad")
        return [query.upper() * top_k for query in queries]


async def test_concurrent_searches_share_one_batch_in_order_of_arrival() -> None:
    search = Recorder()
    batcher = MicroBatcher(search, max_batch=32, max_wait_ms=50)

    results = await asyncio.gather(
        batcher.search(["a"], 1), batcher.search(["b", "c"], 1), batcher.search(["d"], 1)
    )

    assert results == [["A"], ["B", "C"], ["D"]]
    assert search.calls == [(["a", "b", "c", "d"], 1)]
    assert batcher.batches == 1


async def test_a_full_batch_does_not_wait_for_company() -> None:
    search = Recorder()
    batcher = MicroBatcher(search, max_batch=2, max_wait_ms=60_000)

    async with asyncio.timeout(10):
        results = await asyncio.gather(batcher.search(["a"], 1), batcher.search(["b"], 1))

    assert results == [["A"], ["B"]]


async def test_a_batch_is_cut_at_its_size_without_splitting_a_request() -> None:
    search = Recorder()
    batcher = MicroBatcher(search, max_batch=3, max_wait_ms=0)

    await asyncio.gather(
        *(batcher.search(queries, 1) for queries in (["a", "b"], ["c", "d"], list("efghi"), ["j"]))
    )

    assert [queries for queries, _ in search.calls] == [
        ["a", "b"],
        ["c", "d"],
        ["e", "f", "g", "h", "i"],
        ["j"],
    ]


async def test_another_top_k_is_another_batch() -> None:
    search = Recorder()
    batcher = MicroBatcher(search, max_batch=8, max_wait_ms=5)

    results = await asyncio.gather(batcher.search(["a"], 1), batcher.search(["b"], 2))

    assert results == [["A"], ["BB"]]
    assert search.calls == [(["a"], 1), (["b"], 2)]


async def test_requests_of_one_top_k_share_a_batch_past_those_of_another() -> None:
    search = Recorder()
    batcher = MicroBatcher(search, max_batch=3, max_wait_ms=0)

    results = await asyncio.gather(
        *(batcher.search([query], 1 if query in "aceg" else 2) for query in "abcdefg")
    )

    assert results == [["A"], ["BB"], ["C"], ["DD"], ["E"], ["FF"], ["G"]]
    assert search.calls == [(["a", "c", "e"], 1), (["b", "d", "f"], 2), (["g"], 1)]


async def test_only_the_caller_of_a_bad_query_sees_its_error() -> None:
    batcher = MicroBatcher(Recorder(), max_batch=8, max_wait_ms=20)

    good, bad, other = await asyncio.gather(
        batcher.search(["a"], 1),
        batcher.search(["bad"], 1),
        batcher.search(["b"], 1),
        return_exceptions=True,
    )

    assert (good, other) == (["A"], ["B"])
    assert isinstance(bad, ValueError)


async def test_the_search_runs_outside_of_the_event_loop() -> None:
    search = Recorder()

    await MicroBatcher(search, max_wait_ms=0).search(["a"], 1)

    assert threading.get_ident() not in search.threads


async def test_what_arrives_during_a_batch_is_served_after_it() -> None:
    started, release = threading.Event(), threading.Event()
    calls: list[list[str]] = []

    def slow(queries: Sequence[str], top_k: int) -> list[str]:
        calls.append(list(queries))
        started.set()
        assert release.wait(10)
        return list(queries)

    batcher = MicroBatcher(slow, max_batch=8, max_wait_ms=0)
    first = asyncio.create_task(batcher.search(["a"], 1))
    assert await asyncio.to_thread(started.wait, 10)
    later = [asyncio.create_task(batcher.search([query], 1)) for query in "bc"]
    await asyncio.sleep(0)
    release.set()

    assert await asyncio.gather(first, *later) == [["a"], ["b"], ["c"]]
    assert calls == [["a"], ["b", "c"]]


async def test_a_cancelled_search_leaves_the_others_alone() -> None:
    search = Recorder()
    batcher = MicroBatcher(search, max_batch=8, max_wait_ms=50)
    given_up = asyncio.create_task(batcher.search(["a"], 1))
    kept = asyncio.create_task(batcher.search(["b"], 1))
    await asyncio.sleep(0)
    given_up.cancel()

    assert await kept == ["B"]
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert search.calls == [(["b"], 1)]


async def test_no_queries_need_no_batch() -> None:
    search = Recorder()

    assert await MicroBatcher(search).search([], 3) == []
    assert search.calls == []


def test_a_batcher_outlives_an_event_loop() -> None:
    batcher = MicroBatcher(Recorder(), max_batch=8, max_wait_ms=1)

    for _ in range(3):
        assert asyncio.run(batcher.search(["a"], 1)) == ["A"]


async def test_nobody_waits_for_ever_when_the_runner_is_cancelled() -> None:
    batcher = MicroBatcher(Recorder(), max_batch=8, max_wait_ms=60_000)
    waiting = asyncio.create_task(batcher.search(["a"], 1))
    while batcher._runner is None:
        await asyncio.sleep(0)
    batcher._runner.cancel()

    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await waiting
