"""Vectors that are known already, shards on disk, and the lines of a build's progress."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from retrieval_index.progress import PassageProgress
from retrieval_index.vectors import EmbeddingKey, KnownVectors, ShardDirectory, VectorSource

A, B, C, D = (np.array([letter], dtype="S16") for letter in "abcd")
KEY = EmbeddingKey("fingerprint", "passage: ")


def source(*hashes: np.ndarray, vectors: list[list[float]]) -> VectorSource:
    return np.concatenate(hashes), lambda: np.array(vectors, dtype=np.float32)


def test_vectors_are_found_in_every_source_and_the_first_source_counts() -> None:
    known = KnownVectors(
        [
            source(C, A, vectors=[[3.0, 0.0], [1.0, 0.0]]),
            source(B, A, vectors=[[2.0, 0.0], [9.0, 9.0]]),
        ]
    )
    wanted = np.concatenate([A, D, B, C, A])

    is_known, vectors = known.find(wanted, 2)

    assert is_known.tolist() == known.contains(wanted).tolist() == [True, False, True, True, True]
    assert vectors.tolist() == [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1.0, 0.0]]


def test_without_sources_nothing_is_known() -> None:
    is_known, vectors = KnownVectors([]).find(np.concatenate([A, B]), 2)

    assert is_known.tolist() == [False, False]
    assert len(vectors) == 0


def test_a_shard_is_held_for_its_own_texts_in_their_order_only(tmp_path: Path) -> None:
    shards = ShardDirectory(tmp_path / "shards", KEY)
    shards.open()
    vectors = np.array([[1.0], [2.0]], dtype=np.float32)
    shards.write(3, np.concatenate([A, B]), vectors)

    assert shards.shards() == [3]
    assert shards.holds(3, np.concatenate([A, B]))
    assert not shards.holds(3, np.concatenate([B, A]))
    assert not shards.holds(2, np.concatenate([A, B]))
    assert np.array_equal(shards.read(3), vectors)


def test_shards_that_are_set_aside_give_their_vectors_and_are_open_only_while_read(
    tmp_path: Path,
) -> None:
    shards = ShardDirectory(tmp_path / "shards", KEY, rows=1)
    shards.open()
    for number, letter in enumerate([A, B, C]):
        shards.write(number, letter, np.array([[float(number)]], dtype=np.float32))
    shards.set_aside([0])
    shards.write(0, D, np.array([[9.0]], dtype=np.float32))
    shards.set_aside([0, 1])

    wanted = np.concatenate([D, C, B, A])
    open_before = len(os.listdir("/proc/self/fd"))
    known = KnownVectors(shards.sources_aside())
    assert len(os.listdir("/proc/self/fd")) == open_before
    is_known, vectors = known.find(wanted, 1)

    assert is_known.tolist() == [True, False, True, True]
    assert vectors.tolist() == [[9.0], [1.0], [0.0]]
    assert shards.shards() == [2]
    shards.drop_aside()
    assert shards.sources_aside() == []


def test_rows_are_read_across_shards(tmp_path: Path) -> None:
    shards = ShardDirectory(tmp_path / "shards", KEY, rows=2)
    shards.open()
    for number in range(3):
        rows = np.array([[2.0 * number], [2.0 * number + 1]], dtype=np.float32)
        shards.write(number, np.concatenate([A, B]), rows)

    assert np.concatenate(list(shards.between(1, 5))).ravel().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("key", "kept"),
    [(KEY, [0]), (EmbeddingKey("fingerprint", ""), []), (EmbeddingKey("x", ""), [])],
)
def test_shards_of_another_encoder_or_prefix_are_thrown_away(
    tmp_path: Path, key: EmbeddingKey, kept: list[int]
) -> None:
    before = ShardDirectory(tmp_path / "shards", KEY)
    before.open()
    before.write(0, A, np.array([[1.0]], dtype=np.float32))

    after = ShardDirectory(tmp_path / "shards", key)
    after.open()

    assert after.shards() == kept


def test_a_log_gets_plain_lines_without_a_rate_that_nobody_knows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with PassageProgress("encode", 3000, line_every_s=0.0) as progress:
        progress.advance(0)
        progress.advance(1024)
        progress.advance(1976)

    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "encode: 1,024 of 3,000 passages"
    assert last.startswith("encode: 3,000 of 3,000 passages, ")
    assert last.endswith(" passages/s, 0:00 left")


def test_where_nobody_knows_how_many_there_are_no_time_left_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with PassageProgress("scan", None, line_every_s=0.0, brief=True) as progress:
        progress.advance(1000)
        progress.advance(1000)

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("scan: 2,000 passages, ")
    assert last.endswith(" passages/s")


def test_nothing_to_encode_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with PassageProgress("encode", 0), PassageProgress("scan", None, brief=True):
        pass

    assert capsys.readouterr().err == ""
