"""Building with a stand-in that makes vectors without encoding: what is done again, and what is
left behind."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrieval_index.build as build_module
from retrieval_index.build import build_index
from retrieval_index.flat_file import read_flat

DIMENSION = 8


class Interrupted(Exception):
    """Stands for a kill."""


class StandIn:
    """Takes the place of an encoder: random unit vectors, by the texts."""

    dimension = DIMENSION
    stop_after = -1  # calls
    encoded: tuple[str, ...] = ()

    def __init__(self, name: str, **_: Any) -> None:
        self.name = name

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        if type(self).stop_after == 0:
            raise Interrupted
        type(self).stop_after -= 1
        type(self).encoded += tuple(texts)
        seeds = [zlib.crc32(text.encode()) for text in texts]
        rows = [np.random.default_rng(seed).standard_normal(DIMENSION) for seed in seeds]
        vectors = np.array(rows, dtype=np.float32).reshape(-1, DIMENSION)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "Encoder", StandIn)
    monkeypatch.setattr(build_module, "SHARD_ROWS", 8)
    monkeypatch.setattr(StandIn, "stop_after", -1)
    monkeypatch.setattr(StandIn, "encoded", ())


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"hidden_size": DIMENSION}))
    return str(tmp_path / "model")


def write(path: Path, texts: Sequence[str]) -> Path:
    rows = ({"id": text, "contents": text} for text in texts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_corpus_that_changes_in_mid_build_costs_its_new_texts_alone(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {n}" for n in range(30)]
    corpus = write(tmp_path / "c.jsonl", texts)
    monkeypatch.setattr(StandIn, "stop_after", 2)
    with pytest.raises(Interrupted):
        build_index(corpus, tmp_path / "index", encoder, progress=False)
    monkeypatch.setattr(StandIn, "stop_after", -1)
    monkeypatch.setattr(StandIn, "encoded", ())

    write(corpus, ["new", *texts])
    build_index(corpus, tmp_path / "index", encoder, progress=False)

    assert sorted(StandIn.encoded) == sorted(["new", *texts[16:]])
    expected = StandIn("").encode(["new", *texts])
    assert np.array_equal(read_flat(tmp_path / "index" / "index.faiss"), expected)
    assert not (tmp_path / "index" / "shards").exists()
