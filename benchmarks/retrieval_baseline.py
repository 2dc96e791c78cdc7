"""The plain retrieval server that ``make bench-retrieval`` compares with.

    python -m benchmarks.retrieval_baseline INDEX_DIR ENCODER PORT

The design that published search-agent projects ship: one FastAPI endpoint, a plain function that
the server runs in threads; each request is encoded and searched by itself, and passages are read
for each hit. Written here from that description, with the same index and encoder as ours, and
nothing of it slowed down: passages are read through our memory-mapped store.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import faiss
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from retrieval_index.corpus import PassageStore
from retrieval_index.manifest import INDEX_FILE, OFFSETS_FILE, Manifest
from retrieval_index.model_files import resolve_encoder


class QueryRequest(BaseModel):
    """As those projects' clients send it."""

    queries: list[str]
    topk: int = 3
    return_scores: bool = False


def make_app(directory: Path, encoder: str) -> FastAPI:
    """One request at a time goes through encoder and index."""
    manifest = Manifest.read(directory)
    index = faiss.read_index(str(directory / INDEX_FILE))
    store = PassageStore(directory / manifest.corpus, directory / OFFSETS_FILE, cache_size=0)
    model = SentenceTransformer(str(resolve_encoder(encoder)), device="cpu", local_files_only=True)
    app = FastAPI()

    @app.post("/retrieve")
    def retrieve(request: QueryRequest) -> dict[str, Any]:
        vectors = model.encode(request.queries, normalize_embeddings=True, show_progress_bar=False)
        scores, rows = index.search(vectors, request.topk)
        result = []
        for row_scores, row in zip(scores, rows, strict=True):
            documents = [
                {"id": (passage := store[int(i)]).doc_id, "contents": passage.contents} for i in row
            ]
            result.append(
                [
                    {"document": document, "score": float(score)}
                    for document, score in zip(documents, row_scores, strict=True)
                ]
                if request.return_scores
                else documents
            )
        return {"result": result}

    return app


if __name__ == "__main__":
    app = make_app(Path(sys.argv[1]), sys.argv[2])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", access_log=False)
