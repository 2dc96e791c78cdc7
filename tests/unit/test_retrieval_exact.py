"""Exact search: rows and scores of a full scan in float64, whatever the first pass computes in."""

from __future__ import annotations

import numpy as np
import pytest
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
@settings(max_examples=60, deadline=None)
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


def test_a_choice_is_measured_for_many() -> None:
    assert fastest_dtype(np.ones((20_000, 8), dtype=np.float32)) in ("fp32", "bf16")
