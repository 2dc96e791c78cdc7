"""Words beside vectors: a BM25 index (bm25s), and how two rankings become one.

    dense ranking ─┐
                   ├─► reciprocal rank fusion: sum of 1 / (60 + rank) ─► top k
    BM25 ranking ──┘

Formula and constant: Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet
and individual Rank Learning Methods" (SIGIR 2009).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.corpus import PassageStore
from retrieval_index.errors import IndexBuildError, IndexMismatchError
from retrieval_index.files import fsync_directory, fsync_file

__all__ = ["LEXICAL_DIRECTORY", "LexicalIndex", "build_lexical", "fuse", "require_bm25"]

LEXICAL_DIRECTORY = "bm25"
_CONSTANT = 60
_STOPWORDS = "english"


def fuse(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """``(row, score)`` of all rows of some rankings, best first, ties by row.

    >>> [(row, round(score, 4)) for row, score in fuse([[7, 3], [3, 9]])]
    [(3, 0.0325), (7, 0.0164), (9, 0.0161)]
    """
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            scores[row] += 1 / (_CONSTANT + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def _library() -> Any:
    try:
        import bm25s
    except ImportError:
        raise IndexBuildError(
            "hybrid search needs bm25s: pip install bm25s, or gleaner[hybrid]"
        ) from None
    return bm25s


def require_bm25() -> None:
    """Raises IndexBuildError where bm25s is not installed."""
    _library()


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    words: list[list[str]] = _library().tokenize(
        list(texts), stopwords=_STOPWORDS, return_ids=False, show_progress=False
    )
    return words


def build_lexical(store: PassageStore, directory: Path) -> None:
    """Write the BM25 index of all passages to ``directory`` (title and text, English stop words).

    The texts of the corpus and their tokens are in memory meanwhile.
    """
    index = _library().BM25()
    passages = [store[row].contents for row in range(len(store))]
    index.index(_tokens(passages), show_progress=False)
    directory.mkdir()
    index.save(str(directory), show_progress=False)
    for file in directory.iterdir():
        fsync_file(file)
    fsync_directory(directory)


class LexicalIndex:
    """A BM25 index that is open for search, memory-mapped."""

    def __init__(self, index: Any, count: int) -> None:
        self._index = index
        self._count = count

    @classmethod
    def open(cls, directory: Path, count: int, again: str) -> LexicalIndex:
        """Raises IndexMismatchError where it is missing, damaged or of another corpus."""
        try:
            index = _library().BM25.load(str(directory), mmap=True)
            held = int(index.scores["num_docs"])
        except (OSError, ValueError, KeyError) as error:
            raise IndexMismatchError(
                f"{directory}: no BM25 index that can be read ({error}); build it: {again}"
            ) from None
        if held != count:
            raise IndexMismatchError(
                f"{directory}: {held} passages, the manifest says {count}; build it again: {again}"
            )
        return cls(index, count)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[int]]:
        """Rows of the best passages that share a word with each query, best first, ties by row."""
        k = min(top_k, self._count)
        rankings: list[list[int]] = []
        for words in _tokens(queries):
            if not words:
                rankings.append([])
                continue
            scores = self._index.get_scores(words)
            best = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(k)
            kth = scores[best].min()
            tied = np.flatnonzero(scores >= max(kth, np.finfo(scores.dtype).tiny))
            order = np.lexsort((tied, -scores[tied]))
            rankings.append([int(row) for row in tied[order][:k]])
        return rankings
