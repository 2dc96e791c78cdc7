"""What an approximate index learns from, and what is said of its size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from retrieval_index.assemble import empty_index, training_count, training_rows
from retrieval_index.manifest import ShardFile
from retrieval_index.recommend import recommend
from retrieval_index.vectors import EmbeddingKey, ShardDirectory


@pytest.mark.parametrize(
    ("factory", "rows"),
    [
        ("IVF16384,Flat", 655_360),  # FAISS warns below 638,976
        ("OPQ8,IVF16384,PQ8", 655_360),
        ("IVF64,SQ8", 200_000),
        ("PQ8", 200_000),
    ],
)
def test_an_index_of_many_lists_learns_from_as_many_vectors_as_faiss_asks_for(
    factory: str, rows: int
) -> None:
    assert training_count(empty_index(factory, 16, 10**7)) == rows


def directory_of(path: Path, count: int, rows: int) -> ShardDirectory:
    """Row n has the vector [n]."""
    embedded = ShardDirectory(path, EmbeddingKey("", ""), rows)
    embedded.open()
    for shard, start in enumerate(range(0, count, rows)):
        vectors = np.arange(start, min(start + rows, count), dtype=np.float32)[:, None]
        embedded.write(shard, np.full(len(vectors), b"", dtype="S16"), vectors)
    return embedded


def test_it_learns_from_rows_spread_evenly_over_its_range(tmp_path: Path) -> None:
    embedded = directory_of(tmp_path / "shards", count=50, rows=8)

    def rows(most: int) -> list[float]:
        return training_rows(embedded, ShardFile("", 3, 47), most).ravel().tolist()

    assert rows(100) == list(range(3, 47))
    assert rows(15) == list(range(3, 47, 3))


def test_what_it_learns_from_keeps_no_file_open(tmp_path: Path) -> None:
    embedded = directory_of(tmp_path / "shards", count=64, rows=1)
    before = len(os.listdir("/proc/self/fd"))

    sample = training_rows(embedded, ShardFile("", 0, 64), 64)

    assert len(os.listdir("/proc/self/fd")) == before
    assert len(sample) == 64


def test_a_recommended_size_counts_ids_and_centroids() -> None:
    chosen = recommend(21_000_000, 768, 16 << 30)

    assert chosen.factory == "OPQ64,IVF16384,PQ64"
    assert chosen.index_bytes == 21_000_000 * (64 + 8) + 4 * 16_384 * 768
    assert chosen.index_bytes <= 0.6 * (16 << 30)
    assert chosen.reason == "72 bytes a passage fit in memory"
    assert recommend(21_000_000, 768, 1 << 30).factory == chosen.factory
