"""What the retriever answers to every scripted query, asked once in bulk and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic import write_text
from pipeline.types import Passage
from pipeline.warmstart.habits import HabitBook
from pipeline.warmstart.plans import PlannedQuestion
from pipeline.warmstart.script import rephrased_query, vague_query

__all__ = ["BulkSearch", "RetrievalTable", "scripted_queries"]

BulkSearch = Callable[[Sequence[str], int], list[tuple[str, ...]]]  # queries, top_k -> doc ids


def scripted_queries(questions: Iterable[PlannedQuestion], book: HabitBook) -> list[str]:
    """Every query that an episode of ``questions`` may hold, each once, in order."""
    queries: dict[str, None] = {}
    for question in questions:
        for hop in question.hops:
            queries |= dict.fromkeys((hop.query, rephrased_query(hop), vague_query(hop)))
            if (other := book.confusion(hop)) is not None:
                queries[other.query] = None
    return list(queries)


@dataclass(frozen=True, slots=True)
class RetrievalTable:
    """Query -> ids of its top passages, over a corpus."""

    passages: Mapping[str, Passage]
    doc_ids: Mapping[str, Sequence[str]]

    def __call__(self, query: str) -> tuple[Passage, ...]:
        """The passages of a query in the table. Raises KeyError for another."""
        return tuple(self.passages[doc_id] for doc_id in self.doc_ids[query])

    @classmethod
    def fill(
        cls,
        queries: Sequence[str],
        passages: Mapping[str, Passage],
        *,
        search: Callable[[], BulkSearch],
        top_k: int,
        cache: Path,
        fingerprint: str,
    ) -> RetrievalTable:
        """Answer ``queries``, from the cache file of ``fingerprint`` (of corpus and encoder)
        where it knows them; ``search`` makes the retriever only where something is missing."""
        key = hashlib.sha256(f"{fingerprint}|{top_k}".encode()).hexdigest()[:16]
        path = cache / f"retrieval-{key}.json"
        known: dict[str, list[str]] = {}
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
        missing = [q for q in queries if q not in known]
        if missing:
            found = search()(missing, top_k)
            known |= {q: list(ids) for q, ids in zip(missing, found, strict=True)}
            write_text(path, json.dumps(known, ensure_ascii=False))
        return cls(passages, known)
