"""A flat index written shard by shard is the file that FAISS writes."""

from __future__ import annotations

import io
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_index.flat_file import read_flat, write_flat

VECTORS = np.arange(35, dtype=np.float32).reshape(7, 5)


def test_the_bytes_are_those_of_faiss(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(5)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "whole"))
    with (tmp_path / "shards").open("wb") as file:
        write_flat(file, 5, 7, iter([VECTORS[:3], VECTORS[3:6], VECTORS[6:]]))
    assert (tmp_path / "shards").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_missing_shard_is_not_written_over() -> None:
    with pytest.raises(ValueError, match="3 vectors in the shards, expected 7"):
        write_flat(io.BytesIO(), 5, 7, [VECTORS[:3]])


def test_what_faiss_wrote_is_read_without_a_copy(tmp_path: Path) -> None:
    index = faiss.index_factory(5, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "whole"))
    vectors = read_flat(tmp_path / "whole")
    assert isinstance(vectors, np.memmap)
    assert np.array_equal(vectors, VECTORS)


@pytest.mark.parametrize("factory", ["HNSW4", "SQ8"])
def test_another_kind_of_index_is_refused(factory: str, tmp_path: Path) -> None:
    index = faiss.index_factory(5, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="not a flat inner-product index"):
        read_flat(tmp_path / "other")


def test_euclidean_distances_are_refused(tmp_path: Path) -> None:
    faiss.write_index(faiss.IndexFlatL2(5), str(tmp_path / "l2"))
    with pytest.raises(ValueError, match="not a flat inner-product index"):
        read_flat(tmp_path / "l2")


def test_a_file_of_another_kind_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_text('{"id": "0", "contents": "its bytes would be a huge index"}')
    with pytest.raises(ValueError, match="not a flat inner-product index"):
        read_flat(tmp_path / "corpus")


@pytest.mark.parametrize("kept", [0, 10, 44, 45, 100])
def test_a_file_that_was_cut_off_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    with path.open("wb") as file:
        write_flat(file, 5, 7, [VECTORS])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"not a flat inner-product|bytes, 185 for 7 vectors"):
        read_flat(path)
