"""Encoding of corpus rows, in this process or in several worker processes.

A worker opens the passage store and loads the encoder once; it is sent row numbers and sends
vectors back, so texts never travel between processes. With several of them this process loads no
encoder, and no more than a few shards a worker are sent out or held at a time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from retrieval_index.corpus import PassageStore
from retrieval_index.encoder import Encoder
from retrieval_index.errors import IndexBuildError

__all__ = ["Encoders", "LoadEncoder"]

_POLL_S = 0.5  # how often the workers' counter is shown
_AHEAD = 4  # shards a worker: encoded by it, waiting for it, or not taken from it yet

Task = TypeVar("Task")
Result = TypeVar("Result")


class LoadEncoder(Protocol):
    """Loads the encoder on a device; it is sent to the workers."""

    def __call__(self, *, device: str) -> Encoder:
        """Raises EncoderError."""
        ...


@dataclass(frozen=True, slots=True)
class _Texts:
    """Where the passages are, and what is put before each."""

    corpus: Path
    offsets: Path
    prefix: str

    def of(self, store: PassageStore, rows: np.ndarray) -> list[str]:
        return [self.prefix + store[int(row)].contents for row in rows]


class Encoders:
    """The encoder of a build: here where there is one worker, else in each worker's process.

    ``device``: workers of ``cuda`` take the GPUs in turn. To be closed, as a context.
    """

    def __init__(self, load: LoadEncoder, workers: int, device: str) -> None:
        self._workers = workers
        self._here = load(device=device) if workers == 1 else None
        if self._here is None:
            context = multiprocessing.get_context("spawn")  # a forked torch may hang
            self._counter = context.Value("q", 0)
            self._pool = ProcessPoolExecutor(
                workers, context, _start, (load, device, self._counter, context.Value("q", 0))
            )

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, who hold an encoder each."""
        if self._here is None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def dimension(self) -> int:
        """Length of a vector. Raises EncoderError where the encoder cannot be loaded."""
        if self._here is not None:
            return self._here.dimension
        with _typed_death():
            return self._pool.submit(_dimension).result()

    def encode_rows(
        self,
        rows: Mapping[int, np.ndarray],
        store: PassageStore,
        prefix: str,
        advance: Callable[[int], None],
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``(shard, float32[n, d])`` for every shard of ``rows`` (shard -> int64[n] rows).

        Shards come as they are finished. ``advance`` is told of encoded passages on the way.
        Raises IndexBuildError where a worker process dies.
        """
        busy = {shard: wanted for shard, wanted in rows.items() if len(wanted)}
        empty = np.empty((0, self.dimension()), dtype=np.float32)
        for shard in rows.keys() - busy.keys():
            yield shard, empty
        texts = _Texts(store.corpus, store.offsets, prefix)
        if self._here is not None:
            for shard, wanted in busy.items():
                yield shard, self._here.encode(texts.of(store, wanted), advance)
            return
        shown = 0

        def tell() -> None:
            nonlocal shown
            done = int(self._counter.value)
            advance(done - shown)
            shown = done

        with _typed_death():
            yield from as_finished(
                lambda wanted: self._pool.submit(_encode, texts, wanted),
                busy,
                _AHEAD * self._workers,
                tell,
            )


def as_finished(
    submit: Callable[[Task], Future[Result]],
    tasks: Mapping[int, Task],
    most: int,
    tell: Callable[[], None],
) -> Iterator[tuple[int, Result]]:
    """The results of ``tasks`` as they are finished; no more than ``most`` of them are submitted or
    held at a time. ``tell`` is called whenever some are finished, and now and then."""
    waiting = iter(tasks.items())
    number_of: dict[Future[Result], int] = {}
    while True:
        for number, task in islice(waiting, most - len(number_of)):
            number_of[submit(task)] = number
        if not number_of:
            return
        finished = wait(number_of, timeout=_POLL_S, return_when=FIRST_COMPLETED).done
        tell()
        while finished:
            future = finished.pop()
            yield number_of.pop(future), future.result()
            del future


@contextlib.contextmanager
def _typed_death() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise IndexBuildError(
            "an encoder worker process died (killed, or out of memory?); finished embeddings are "
            "kept: run the same command again, with fewer workers or a smaller batch_size"
        ) from None


_worker: dict[str, Any] = {}  # of a worker process alone: filled by its initializer


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start(load: LoadEncoder, device: str, counter: Any, started: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with started.get_lock():
        number = started.value
        started.value += 1
    _worker.update(load=load, device=device, number=number, counter=counter)


def _encoder() -> Encoder:
    """This worker's, loaded by its first task: what goes wrong is that task's error."""
    if "encoder" not in _worker:
        device = device_of(_worker["number"], _worker["device"])
        _worker["encoder"] = _worker["load"](device=device)
    encoder: Encoder = _worker["encoder"]
    return encoder


def device_of(worker: int, device: str) -> str:
    """The device of a worker by its number: ``cuda`` is all GPUs in turn."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{worker % max(1, torch.cuda.device_count())}"


@lru_cache(maxsize=1)
def _store(corpus: Path, offsets: Path) -> PassageStore:
    return PassageStore(corpus, offsets, cache_size=0)


def _dimension() -> int:
    return _encoder().dimension


def _encode(texts: _Texts, rows: np.ndarray) -> np.ndarray:
    store = _store(texts.corpus, texts.offsets)
    return _encoder().encode(texts.of(store, rows), _count)


def _count(passages: int) -> None:
    with _worker["counter"].get_lock():
        _worker["counter"].value += passages
