"""What ``python -m retrieval_index COMMAND --help`` says: each key with its meaning and default."""

from __future__ import annotations

import inspect
from collections.abc import Callable

__all__ = ["MEANINGS", "help_of"]

MEANINGS = {
    "text": "what to look for",
    "corpus": "passages: a JSONL file (.gz: gzipped) or .parquet",
    "index": "directory of the index",
    "index_file": "FAISS file whose row n is line n of the corpus",
    "encoder": "model directory, package:NAME, or hub name (org/name or org/name@REVISION)",
    "query_prefix": "put before every query, e.g. 'query: ' for e5",
    "passage_prefix": "put before every passage, e.g. 'passage: ' for e5",
    "pooling": "how one vector is made of a text's: mean or cls (default: the model's own)",
    "max_length": "tokens of a text, the rest is cut; 0: the model's own",
    "factory": "FAISS factory string, or auto: by the size of corpus and memory",
    "batch_size": "texts encoded together",
    "threads": "CPU threads (build: of each worker)",
    "workers": "processes that encode",
    "device": "where the models run: cpu, cuda",
    "keep_vectors": "keep them beside an approximate index, for its recall and its next build",
    "lexical": "make a BM25 index, too, for hybrid search (needs bm25s)",
    "shards": "index files, each of a range of rows",
    "force": "make all of it anew",
    "samples": "passages that are embedded and compared with the vectors of the index",
    "queries": "file of one query a line, to measure recall with (default: halves of passages)",
    "top_k": "passages a query",
    "picture": "PNG file for the curve of recall against time",
    "memory_gib": "memory that the index is for; 0: this machine's",
    "host": "address to listen on; needs GLEANER_RETRIEVAL_TOKEN where others can reach it",
    "port": "port to listen on; 0: any free one",
    "max_batch_wait_ms": "how long a query may wait for company",
    "max_queries": "most queries of a request",
    "max_topk": "most passages a query",
    "max_waiting": "most queries that wait",
    "timeout_s": "deadline of a request",
    "cache_size": "queries whose vector and ranking are kept; 0: none",
    "search_parameters": "FAISS's, of an approximate index: nprobe=32, efSearch=128",
    "hybrid": "fuse the rankings by vector and by words; needs an index with lexical=true",
    "reranker": "a cross-encoder (named as encoder) that orders the best ones anew",
    "depth": "passages that hybrid search and the reranker look at",
}
_OF_MANIFEST = ("corpus", "encoder")  # where they are not given


def help_of(name: str, command: Callable[..., None]) -> str:
    """The help of a command; its keys are the function's parameters."""
    parameters = inspect.signature(command).parameters.values()
    rows = [
        (
            p.name.upper() if p.kind is p.POSITIONAL_OR_KEYWORD else f"{p.name}=...",
            f"{MEANINGS[p.name]} {_default(p)}".rstrip(),
        )
        for p in parameters
    ]
    width = max(len(key) for key, _ in rows)
    lines = [f"  {key:<{width}}  {meaning}" for key, meaning in rows]
    return "\n".join([f"python -m retrieval_index {name}: {inspect.getdoc(command)}", "", *lines])


def _default(p: inspect.Parameter) -> str:
    """In brackets, where it is not said by the meaning."""
    if p.default is p.empty:
        return "(required)"
    if p.default is None:
        return "(default: the manifest's)" if p.name in _OF_MANIFEST else ""
    if p.default == "":
        return ""
    shown = str(p.default).lower() if isinstance(p.default, bool) else p.default
    return f"(default: {shown})"
