"""Encoding of corpus rows, in this process or in several worker processes.

A worker opens the passage store and loads the encoder once; it is sent row numbers and sends
vectors back, so texts never travel between processes.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.corpus import PassageStore
from retrieval_index.encoder import Encoder
from retrieval_index.errors import IndexBuildError

__all__ = ["encode_rows"]

_POLL_S = 0.5  # how often the workers' counter is shown


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to start."""

    corpus: Path
    offsets: Path
    prefix: str
    encoder: str
    threads: int
    batch_size: int
    device: str


def encode_rows(
    rows: Mapping[int, np.ndarray],
    store: PassageStore,
    encoder: Encoder,
    prefix: str,
    workers: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(shard, float32[n, d])`` for every shard of ``rows`` (shard -> int64[n] rows).

    Shards come as they are finished. ``advance`` is told of encoded passages on the way.
    Raises IndexBuildError where a worker process dies.
    """
    busy = {shard: wanted for shard, wanted in rows.items() if len(wanted)}
    for shard in rows.keys() - busy.keys():
        yield shard, np.empty((0, encoder.dimension), dtype=np.float32)
    if workers > 1 and len(busy) > 1:
        job = _Job(
            corpus=store.corpus,
            offsets=store.offsets,
            prefix=prefix,
            encoder=encoder.name,
            threads=encoder.threads,
            batch_size=encoder.batch_size,
            device=encoder.device,
        )
        yield from _in_processes(busy, job, min(workers, len(busy)), advance)
        return
    for shard, wanted in busy.items():
        yield shard, encoder.encode(_texts(store, wanted, prefix), advance)


def _texts(store: PassageStore, rows: np.ndarray, prefix: str) -> list[str]:
    return [prefix + store[int(row)].contents for row in rows]


def _in_processes(
    rows: Mapping[int, np.ndarray], job: _Job, workers: int, advance: Callable[[int], None]
) -> Iterator[tuple[int, np.ndarray]]:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(job, counter))
    try:
        shard_of = {pool.submit(_encode, wanted): shard for shard, wanted in rows.items()}
        pending: set[Future[np.ndarray]] = set(shard_of)
        shown = 0
        while pending:
            finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            done = int(counter.value)
            advance(done - shown)
            shown = done
            for future in finished:
                yield shard_of[future], future.result()
    except BrokenProcessPool:
        raise IndexBuildError(
            "an encoder worker process died (killed, or out of memory?); finished embeddings are "
            "kept: run the same command again, with fewer workers or a smaller batch_size"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}  # of a worker process alone: filled by its initializer


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start(job: _Job, counter: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker["store"] = PassageStore(job.corpus, job.offsets, cache_size=0)
    _worker["prefix"] = job.prefix
    _worker["counter"] = counter
    _worker["encoder"] = Encoder(
        job.encoder, threads=job.threads, batch_size=job.batch_size, device=job.device
    )


def _encode(rows: np.ndarray) -> np.ndarray:
    return _worker["encoder"].encode(_texts(_worker["store"], rows, _worker["prefix"]), _count)


def _count(passages: int) -> None:
    with _worker["counter"].get_lock():
        _worker["counter"].value += passages
