"""Exact search whose first pass runs on a GPU: the rows and scores of the CPU's."""

from __future__ import annotations

import numpy as np

from retrieval_index.exact import ExactSearch


def test_the_gpu_finds_what_the_cpu_finds() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200_000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1000:2000] = vectors[:1000]  # ties
    queries = np.concatenate([vectors[:16], rng.standard_normal((16, 384)).astype(np.float32)])
    on_gpu = ExactSearch(vectors, device="cuda").search(queries, 10)
    on_cpu = ExactSearch(vectors, "fp32").search(queries, 10)
    assert np.array_equal(on_gpu[0], on_cpu[0])
    assert np.array_equal(on_gpu[1], on_cpu[1])
