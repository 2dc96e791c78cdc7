"""The HTTP server: ``/retrieve`` as the field speaks it, and ``/health``."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from retrieval_index.batching import MicroBatcher
from retrieval_index.errors import QueryError, ServerError
from retrieval_index.index import DenseIndex, Hit
from retrieval_index.protocol import DEFAULT_TOP_K, response_body

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["LOOPBACK", "make_app", "open_socket", "serve"]

LOOPBACK = "127.0.0.1"


def make_app(index: DenseIndex, *, batch_size: int = 32, max_batch_wait_ms: float = 2.0) -> FastAPI:
    """The FastAPI application. Concurrent requests share batches.

    A request that is not of the protocol gets 422, one that cannot be searched for (blank query,
    ``topk`` above the corpus) 400 with ``{"detail": why}``.
    """
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel

    class RetrieveRequest(BaseModel):
        queries: list[str]
        topk: int | None = None
        return_scores: bool = False

    batcher: MicroBatcher[list[Hit]] = MicroBatcher(
        index.search, max_batch=batch_size, max_wait_ms=max_batch_wait_ms
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(title="retrieval_index", lifespan=lifespan)

    async def retrieve(request: RetrieveRequest) -> dict[str, Any]:
        top_k = DEFAULT_TOP_K if request.topk is None else request.topk
        hits = await batcher.search(request.queries, top_k)
        return response_body(hits, request.return_scores)

    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "passages": len(index),
            "encoder": index.manifest.encoder,
            "stats": {**index.stats.as_dict(), "batches": batcher.batches},
        }

    async def bad_query(_: object, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    # Evaluated here because RetrieveRequest is local: postponed annotations cannot see it.
    retrieve.__annotations__["request"] = RetrieveRequest
    app.post("/retrieve")(retrieve)
    app.get("/health")(health)
    app.add_exception_handler(QueryError, bad_query)
    return app


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on an address (port 0: any free one). Raises ServerError where it is taken."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ServerError(
            f"cannot listen on {host}:{port} ({reason}); end what holds the port, or give "
            "another: port=..."
        ) from None
    return listening


def serve(index: DenseIndex, listening: socket.socket, **batching: Any) -> None:
    """Serve until interrupted."""
    import uvicorn

    config = uvicorn.Config(make_app(index, **batching), log_level="warning", access_log=False)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
