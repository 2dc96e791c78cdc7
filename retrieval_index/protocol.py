"""The field's ``/retrieve`` protocol (Search-R1, verl, slime): both directions, no transport.

``POST /retrieve {"queries": [str], "topk": int, "return_scores": bool}`` answers
``{"result": [[{"document": {"id": str, "contents": str}, "score": float}]]}``, one inner list a
query; without ``return_scores`` the inner items are the bare documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrieval_index.errors import ServerError
from retrieval_index.index import Hit

__all__ = ["DEFAULT_TOP_K", "parse_response", "request_body", "response_body"]

DEFAULT_TOP_K = 3  # where a request names no topk


def request_body(queries: Sequence[str], top_k: int) -> dict[str, Any]:
    """The JSON of a request that asks for scores."""
    return {"queries": list(queries), "topk": top_k, "return_scores": True}


def response_body(results: Sequence[Sequence[Hit]], return_scores: bool) -> dict[str, Any]:
    """The JSON of an answer."""
    return {"result": [[_item(hit, return_scores) for hit in hits] for hits in results]}


def _item(hit: Hit, return_scores: bool) -> dict[str, Any]:
    document = {"id": hit.doc_id, "contents": hit.contents}
    return {"document": document, "score": hit.score} if return_scores else document


def parse_response(body: Any, num_queries: int, url: str) -> list[list[Hit]]:
    """The hits of an answer, with or without scores (0.0 then).

    Documents may hold ``contents``, or ``title`` and ``text`` as some servers send.
    Raises ServerError where the answer is not of the protocol.
    """
    result = body.get("result") if isinstance(body, dict) else None
    if not isinstance(result, list) or not all(isinstance(hits, list) for hits in result):
        raise ServerError(
            f'{url}: the answer is not {{"result": [[...]]}}; is it a /retrieve server?'
        )
    if len(result) != num_queries:
        raise ServerError(f"{url}: {len(result)} results for {num_queries} queries")
    return [[_hit(item, url) for item in hits] for hits in result]


def _hit(item: Any, url: str) -> Hit:
    scored = isinstance(item, dict) and isinstance(item.get("document"), dict)
    document = item["document"] if scored else item
    if not isinstance(document, dict):
        raise ServerError(f"{url}: a result is not a document: {str(item)[:120]}")
    contents = document.get("contents")
    if not isinstance(contents, str):
        if not isinstance(document.get("text"), str):
            raise ServerError(f"{url}: a document has no 'contents': {str(document)[:120]}")
        contents = f'"{document.get("title", "")}"\n{document["text"]}'
    score = item.get("score", 0.0) if scored else 0.0
    return Hit(str(document.get("id", "")), contents, float(score))
