"""Recall of an approximate index against exact search, and what it costs: a curve to choose by.

Recall at k of a query is the share of its k nearest passages that the approximate index finds
among its first k.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.corpus import PassageStore
from retrieval_index.encoder import Encoder
from retrieval_index.errors import QueryError
from retrieval_index.exact import ExactSearch
from retrieval_index.manifest import FLAT, Manifest
from retrieval_index.vector_search import (
    FaissSearch,
    ShardedSearch,
    VectorSearch,
    set_search_parameters,
)
from retrieval_index.vectors import stored_vectors

__all__ = ["RecallPoint", "draw_recall", "half_passages", "measure_recall", "recall_curve"]

_SAMPLES = 200  # queries, where none are given
_PARAMETERS = {"nprobe": (1, 2, 4, 8, 16, 32, 64, 128, 256), "efSearch": (8, 16, 32, 64, 128, 256)}


@dataclass(frozen=True, slots=True)
class RecallPoint:
    """An index with one setting."""

    parameters: str  # of FAISS, or "exact"
    recall: float
    ms: float  # a query, searched for one at a time


def measure_recall(
    index: Path, store: PassageStore, encoder: Encoder, queries: Sequence[str], top_k: int
) -> list[RecallPoint]:
    """The curve of an approximate index, by ``queries`` or (none) by halves of its passages.

    Raises QueryError where the index is exact, or has not kept its vectors.
    """
    manifest = Manifest.read(index)
    stored = stored_vectors(manifest, index)
    if manifest.factory == FLAT or not stored:
        why = "exact" if manifest.factory == FLAT else "imported, or built without keep_vectors"
        raise QueryError(f"index {index}: its recall cannot be measured, for it is {why}")
    texts = queries or half_passages(store, _SAMPLES)
    embedded = encoder.encode([manifest.query_prefix + text for text in texts])
    exact = ExactSearch(stored[0][1])
    return recall_curve(manifest, index, exact, embedded, min(top_k, len(exact)), encoder.threads)


def half_passages(store: PassageStore, samples: int) -> list[str]:
    """Queries where there are none: the second halves of sampled passages' texts."""
    rng = np.random.default_rng(1)
    rows = rng.choice(len(store), min(samples, len(store)), replace=False)
    texts = [store[int(row)].text or store[int(row)].contents for row in rows]
    return [" ".join(words[len(words) // 2 :]) for words in (text.split() for text in texts)]


def recall_curve(
    manifest: Manifest,
    index: Path,
    exact: ExactSearch,
    queries: np.ndarray,
    top_k: int,
    threads: int,
) -> list[RecallPoint]:
    """Of float32[m, d] queries, for every value of the parameter that this index has; exact search
    last."""
    import faiss

    files = manifest.shard_files()
    opened = [faiss.read_index(str(index / f.name), faiss.IO_FLAG_MMAP_IFC) for f in files]
    search = ShardedSearch(
        [(f.start, FaissSearch(o, threads)) for f, o in zip(files, opened, strict=True)]
    )
    expected, exact_ms = _timed(exact, queries, top_k)
    points = []
    for parameters in _settings(opened[0]):
        for shard in opened if parameters else ():
            set_search_parameters(shard, parameters)
        found, ms = _timed(search, queries, top_k)
        points.append(RecallPoint(parameters or "as it is", _recall(found, expected), ms))
    return [*points, RecallPoint("exact", 1.0, exact_ms)]


def _settings(opened: Any) -> list[str]:
    """Run-time parameters to try: those that FAISS takes for this kind of index."""
    import faiss

    for name, values in _PARAMETERS.items():
        space: Any = faiss.ParameterSpace()
        try:
            space.set_index_parameter(opened, name, values[0])
        except RuntimeError:
            continue
        lists = faiss.extract_index_ivf(opened).nlist if name == "nprobe" else np.inf
        return [f"{name}={value}" for value in values if value <= lists]
    return [""]


def _timed(search: VectorSearch, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, float]:
    """int64[m, k] rows, and milliseconds a query."""
    search.search(queries[:1], top_k)
    began = time.perf_counter()
    rows = [search.search(queries[i : i + 1], top_k)[1][0] for i in range(len(queries))]
    return np.array(rows), 1000 * (time.perf_counter() - began) / len(queries)


def _recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean share of the expected rows that were found.

    >>> _recall(np.array([[1, 2], [3, -1]]), np.array([[2, 5], [3, 4]]))
    0.5
    """
    shares = [len(set(f) & set(e)) / len(e) for f, e in zip(found, expected, strict=True)]
    return float(np.mean(shares))


def draw_recall(points: Sequence[RecallPoint], title: str, top_k: int, path: Path) -> None:
    """Write the curve as a PNG: recall up, milliseconds a query to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    *approximate, exact = points
    axes.plot([p.ms for p in approximate], [p.recall for p in approximate], marker="o", color="C0")
    for point in approximate:
        axes.annotate(
            point.parameters, (point.ms, point.recall), fontsize=8,
            xytext=(6, -10), textcoords="offset points",
        )  # fmt: skip
    axes.axvline(exact.ms, color="C1", linestyle="--", label="exact search")
    axes.set(
        xscale="log", xlabel="ms a query (one at a time)", ylabel=f"recall at {top_k}", title=title
    )
    axes.set_ylim(top=1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=140)
    pyplot.close(figure)
    temporary.replace(path)
