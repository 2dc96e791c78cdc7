"""Exact search: rows and scores of a full scan in float64, whatever the first pass computes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_index.exact import ExactSearch, fastest_dtype


def full_scan(
    vectors: np.ndarray, queries: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same by definition."""
    scores = (queries.astype(np.float64)[:, None, :] * vectors.astype(np.float64)).sum(axis=2)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(scores, rows, 1), rows


def unit(rng: np.random.Generator, rows: int, dimension: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@given(
    rows=st.integers(1, 300),
    dimension=st.sampled_from([2, 7, 64]),
    top_k=st.integers(1, 40),
    close=st.sampled_from([0.0, 1e-7, 1e-3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_rows_and_scores_are_those_of_a_full_scan(
    dtype: str, rows: int, dimension: int, top_k: int, close: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng, rows, dimension)
    if close or seed % 3 == 0:  # many rows that nearly or really tie
        vectors[rows // 2 :] = vectors[0] + close * unit(rng, rows - rows // 2, dimension)
    queries = np.concatenate([unit(rng, 3, dimension), vectors[:1]])
    top_k = min(top_k, rows)
    scores, found = ExactSearch(vectors, dtype).search(queries, top_k)
    expected_scores, expected = full_scan(vectors, queries, top_k)
    assert np.array_equal(found, expected)
    assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_blocks_and_batches_do_not_change_what_is_found(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = unit(rng, 1000, 16), unit(rng, 9, 16)
    whole = ExactSearch(vectors, dtype).search(queries, 5)
    monkeypatch.setattr("retrieval_index.exact._BLOCK_ROWS", 96)
    monkeypatch.setattr("retrieval_index.exact._BATCH", 2)
    monkeypatch.setattr("retrieval_index.exact._PAIRS", 7)
    parts = ExactSearch(vectors, dtype).search(queries, 5)
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])


def test_vectors_that_bf16_cannot_tell_apart_are_told_apart() -> None:
    vectors = np.array([[1.0, 0.0], [1.0 + 2**-20, 0.0], [1.0 + 2**-19, 0.0]], dtype=np.float32)
    scores, rows = ExactSearch(vectors, "bf16").search(np.array([[1.0, 0.0]], dtype=np.float32), 3)
    assert rows.tolist() == [[2, 1, 0]]
    assert scores.tolist() == [[1.0 + 2**-19, 1.0 + 2**-20, 1.0]]


def test_few_vectors_are_not_worth_a_copy() -> None:
    assert fastest_dtype(np.zeros((10, 4), dtype=np.float32)) == "fp32"


@pytest.mark.parametrize(("fp32_s", "bf16_s", "chosen"), [(2.0, 1.0, "bf16"), (1.0, 2.0, "fp32")])
def test_for_many_the_faster_one_is_chosen(
    fp32_s: float, bf16_s: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {torch.float32: fp32_s, torch.bfloat16: bf16_s}
    monkeypatch.setattr("retrieval_index.exact._fastest_s", lambda left, _: times[left.dtype])
    assert fastest_dtype(np.ones((20_000, 8), dtype=np.float32)) == chosen


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_vector_that_is_not_finite_is_refused_by_its_row(dtype: str) -> None:
    vectors = np.ones((10, 4), dtype=np.float32)
    vectors[7, 2] = np.nan
    with pytest.raises(ValueError, match="row 7 is not finite"):
        ExactSearch(vectors, dtype)


def test_more_than_there_are_are_filled_with_minus_one() -> None:
    vectors = np.eye(2, dtype=np.float32)
    scores, rows = ExactSearch(vectors).search(vectors[:1], 3)
    assert rows.tolist() == [[0, 1, -1]]
    assert scores.tolist() == [[1.0, 0.0, -np.inf]]
