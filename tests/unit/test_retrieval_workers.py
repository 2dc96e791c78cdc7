"""Encoding in several processes: what this one holds meanwhile, and which GPU each takes."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from retrieval_index.corpus import PassageStore, scan_corpus
from retrieval_index.errors import EncoderError
from retrieval_index.workers import Encoders, as_finished, device_of

DIMENSION = 3


class StandIn:
    """Takes the place of an encoder: a text's vector is its length, the process, and 0."""

    dimension = DIMENSION

    def __init__(self, *, device: str) -> None:
        if device == "broken":
            raise EncoderError("encoder stand-in: its weights are broken")

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        if on_progress is not None:
            on_progress(len(texts))
        return np.array([[len(text), os.getpid(), 0] for text in texts], dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> PassageStore:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(f'{{"id": "{n}", "contents": "{"x" * n}y"}}\n' for n in range(20)))
    np.save(tmp_path / "offsets.npy", scan_corpus(corpus).offsets)
    return PassageStore(corpus, tmp_path / "offsets.npy")


def test_no_more_results_than_a_few_are_alive_however_many_tasks_there_are() -> None:
    alive: weakref.WeakSet[Future[np.ndarray]] = weakref.WeakSet()
    most = 0

    def submit(task: int) -> Future[np.ndarray]:
        future: Future[np.ndarray] = Future()
        future.set_result(np.full(8, task))
        alive.add(future)
        return future

    numbers = []
    for number, result in as_finished(submit, {n: n for n in range(200)}, 8, lambda: None):
        assert result[0] == number
        numbers.append(number)
        most = max(most, len(alive))

    assert sorted(numbers) == list(range(200))
    assert most <= 8


def test_tasks_are_sent_out_as_others_end() -> None:
    sent: list[Future[int]] = []

    def submit(task: int) -> Future[int]:
        future: Future[int] = Future()
        sent.append(future)
        if len(sent) == 1:
            future.set_result(task)
        return future

    results = as_finished(submit, {n: n for n in range(10)}, 4, lambda: None)
    assert next(results) == (0, 0)
    assert len(sent) == 4
    sent[2].set_result(2)
    assert next(results) == (2, 2)
    assert len(sent) == 5


def test_workers_encode_and_this_process_loads_no_encoder(store: PassageStore) -> None:
    told: list[int] = []
    rows = {4: np.arange(4, 8), 0: np.arange(4), 2: np.arange(0)}
    with Encoders(StandIn, 2, "cpu") as encoders:
        assert encoders.dimension() == DIMENSION
        found = dict(encoders.encode_rows(rows, store, "> ", told.append))

    assert {n: vectors[:, 0].tolist() for n, vectors in found.items()} == {
        0: [3, 4, 5, 6],
        4: [7, 8, 9, 10],
        2: [],
    }
    assert found[2].shape == (0, DIMENSION)
    assert sum(told) == 8
    assert os.getpid() not in np.concatenate([found[0], found[4]])[:, 1]


def test_an_encoder_that_a_worker_cannot_load_is_named() -> None:
    with (
        Encoders(StandIn, 2, "broken") as encoders,
        pytest.raises(EncoderError, match="its weights are broken"),
    ):
        encoders.dimension()


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert [device_of(n, "cuda") for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [device_of(n, name) for n, name in ((1, "cpu"), (3, "cuda:1"))] == ["cpu", "cuda:1"]
