"""What ``check`` says of indexes whose rows are not their passages', by a stand-in encoder."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

import retrieval_index.build as build_module
import retrieval_index.check as check_module
from retrieval_index.build import build_index
from retrieval_index.check import check_index
from retrieval_index.manifest import Manifest
from retrieval_index.matching import read_vectors
from retrieval_index.sample import Sample
from tests.support.stand_in_encoder import DIMENSION, StandIn, write_model, write_texts

COUNT = 200


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "Encoder", StandIn)
    monkeypatch.setattr(check_module, "Encoder", StandIn)


def built(directory: Path, *, keep_vectors: bool) -> Path:
    corpus = write_texts(directory / "c.jsonl", [f"text {n}" for n in range(COUNT)])
    encoder = write_model(directory / "model")
    index = directory / "index"
    build_index(
        corpus, index, encoder, factory="IVF4,Flat", keep_vectors=keep_vectors, progress=False
    )
    return index


@pytest.mark.parametrize("keep_vectors", [True, False])
def test_an_approximate_index_is_asked_for_its_passages(
    tmp_path: Path, *, keep_vectors: bool
) -> None:
    found = check_index(built(tmp_path, keep_vectors=keep_vectors))

    assert found.problems == []
    assert "sample: the index finds 100% of 64 passages by themselves" in found.notes
    compared = [note for note in found.notes if "cosine to the stored vectors" in note]
    assert len(compared) == keep_vectors


@pytest.mark.parametrize("keep_vectors", [True, False])
def test_an_approximate_index_of_other_rows_is_a_problem(
    tmp_path: Path, *, keep_vectors: bool
) -> None:
    index = built(tmp_path, keep_vectors=keep_vectors)
    other = faiss.index_factory(DIMENSION, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    vectors = StandIn("").encode([f"text {n}" for n in range(COUNT)])
    other.train(vectors)
    other.add(np.roll(vectors, 1, axis=0))
    faiss.write_index(other, str(index / "index.faiss"))

    (problem,) = check_index(index).problems
    assert problem.startswith("sample: the index finds 0% of 64 passages by themselves (row ")
    assert "do not belong together" in problem


def test_where_something_else_is_wrong_the_sample_is_said_to_be_missing(tmp_path: Path) -> None:
    index = built(tmp_path, keep_vectors=True)
    (index / "vectors.faiss").write_bytes(b"cut")

    assert "sample: not looked at, for something else is wrong" in check_index(index).notes


@pytest.mark.parametrize(
    ("cosines", "imported", "wrong"),
    [
        ([1.0] * 20, False, []),
        ([1.0] * 19 + [0.995], False, [19]),
        ([1.0] * 19 + [0.995], True, []),
        ([1.0] * 18 + [0.93, 0.97], True, []),  # long passages, cut elsewhere
        ([1.0] * 19 + [0.7], True, [19]),  # another passage's
        ([1.0] * 17 + [0.93, 0.93, 0.97], True, [17, 18, 19]),  # too many
    ],
)
def test_a_few_passages_of_an_imported_index_may_have_been_cut_elsewhere(
    cosines: list[float], imported: bool, wrong: list[int]
) -> None:
    sample = Sample(np.arange(20), np.empty((20, 1), dtype=np.float32))

    assert sample.wrong(np.array(cosines), imported=imported).tolist() == wrong


def test_search_parameters_are_set_before_a_gpu_takes_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built(tmp_path, keep_vectors=False)
    moved: list[int] = []

    def move(_: object, device: int, opened: faiss.Index) -> faiss.Index:
        moved.append(faiss.extract_index_ivf(opened).nprobe)
        return opened

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    read_vectors(Manifest.read(index), index, "", 0, "nprobe=3", device="cuda")

    assert moved == [3]
