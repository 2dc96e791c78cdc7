"""How the benchmark of retrieval compares what two indexes find."""

from __future__ import annotations

import faiss
import numpy as np

from benchmarks.retrieval import compare_ids
from retrieval_index.exact import ExactSearch


def test_queries_whose_scores_fp32_may_exchange_are_left_out_and_said_so() -> None:
    vectors = np.array([[0.9, 0.1], [0.7, 0.3], [0.5, 0.2], [0.2, 0.8]], dtype=np.float32)
    queries = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32)  # the last: all scores are 0
    theirs = faiss.IndexFlatIP(2)
    theirs.add(vectors)
    assert compare_ids(ExactSearch(vectors), theirs, queries) == {"differing": 0, "left_out": 1}

    other = faiss.IndexFlatIP(2)
    other.add(vectors[::-1].copy())
    assert compare_ids(ExactSearch(vectors), other, queries) == {"differing": 2, "left_out": 1}
