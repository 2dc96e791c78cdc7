"""Building with a stand-in that makes vectors without encoding: what is done again, and what is
left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import retrieval_index.build as build_module
from retrieval_index.build import build_index
from retrieval_index.flat_file import read_flat
from tests.support.stand_in_encoder import StandIn, write_model, write_texts


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "Encoder", StandIn)
    monkeypatch.setattr(build_module, "SHARD_ROWS", 8)
    monkeypatch.setattr(StandIn, "encoded", [])


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    return write_model(tmp_path / "model")


def test_a_corpus_that_changes_in_mid_build_costs_its_new_texts_alone(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {n}" for n in range(30)]
    corpus = write_texts(tmp_path / "c.jsonl", texts)
    real = StandIn.encode

    def encode(self: StandIn, wanted: Sequence[str], *rest: object) -> np.ndarray:
        if len(StandIn.encoded) == 16:
            raise Interrupted
        return real(self, wanted)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(StandIn, "encode", encode)
        build_index(corpus, tmp_path / "index", encoder, progress=False)
    StandIn.encoded.clear()

    write_texts(corpus, ["new", *texts])
    build_index(corpus, tmp_path / "index", encoder, progress=False)

    assert sorted(StandIn.encoded) == sorted(["new", *texts[16:]])
    expected = StandIn("").encode(["new", *texts])
    assert np.array_equal(read_flat(tmp_path / "index" / "index.faiss"), expected)
    assert not (tmp_path / "index" / "shards").exists()
