"""Building with a stand-in that makes vectors without encoding: what is done again, and what is
left behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrieval_index.build as build_module
from retrieval_index import assemble
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


def stop_at(
    monkeypatch: pytest.MonkeyPatch, call: int, written: list[str]
) -> AbstractContextManager[object]:
    """Note the index files that are written; stop before the one of this number."""
    real = assemble._write_index

    def write(factory: str, dimension: int, embedded: Any, file: Any, *rest: Any) -> None:
        written.append(file.name)
        if len(written) == call:
            raise Interrupted
        real(factory, dimension, embedded, file, *rest)

    monkeypatch.setattr(assemble, "_write_index", write)
    return pytest.raises(Interrupted)


@pytest.mark.parametrize("factory", ["Flat", "IVF2,Flat"])
def test_index_files_that_were_finished_before_a_kill_are_kept(
    factory: str, tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_texts(tmp_path / "c.jsonl", [f"text {n}" for n in range(120)])
    how: dict[str, Any] = {"factory": factory, "shards": 3, "progress": False}
    build_index(corpus, tmp_path / "whole", encoder, **how)
    written: list[str] = []
    with stop_at(monkeypatch, 3, written):
        build_index(corpus, tmp_path / "index", encoder, **how)
    build_index(corpus, tmp_path / "index", encoder, **how)

    assert written == ["index-0.faiss", "index-1.faiss", "index-2.faiss", "index-2.faiss"]
    for n in range(3):
        name = f"index-{n}.faiss"
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "index" / "shards").exists()


def test_index_files_of_another_factory_or_text_are_not_taken(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {n}" for n in range(120)]
    corpus = write_texts(tmp_path / "c.jsonl", texts)
    written: list[str] = []
    with stop_at(monkeypatch, 2, written):
        build_index(corpus, tmp_path / "index", encoder, shards=2, progress=False)
    write_texts(corpus, ["new", *texts[1:]])
    build_index(corpus, tmp_path / "index", encoder, shards=2, progress=False)

    assert written == ["index-0.faiss", "index-1.faiss", "index-0.faiss", "index-1.faiss"]
    assert np.array_equal(
        read_flat(tmp_path / "index" / "index-0.faiss")[0], StandIn("").encode(["new"])[0]
    )


def test_what_a_kill_in_the_last_moment_left_is_removed_by_the_same_command(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_texts(tmp_path / "c.jsonl", [f"text {n}" for n in range(20)])
    index, old = tmp_path / "index", tmp_path / "index.old"
    build_index(corpus, index, encoder, progress=False)
    (index / "shards").mkdir()
    old.mkdir()
    StandIn.encoded.clear()

    build_index(corpus, index, encoder, progress=False)

    assert StandIn.encoded == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "index", "model"]
    assert not (index / "shards").exists()
