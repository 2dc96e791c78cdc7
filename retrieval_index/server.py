"""The HTTP server: ``/retrieve`` as the field speaks it, ``/health`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from retrieval_index.batching import MicroBatcher
from retrieval_index.errors import OverloadError, QueryError, ServerError
from retrieval_index.http_guard import Guard, RequestLimits
from retrieval_index.http_metrics import ServerMetrics
from retrieval_index.index import DenseIndex, Hit
from retrieval_index.protocol import DEFAULT_TOP_K, response_body

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["LOOPBACK", "make_app", "open_socket", "serve"]

LOOPBACK = "127.0.0.1"
_CONNECTIONS = 4096  # more are answered with 503


def make_app(
    index: DenseIndex,
    *,
    batch_size: int = 32,
    max_batch_wait_ms: float = 2.0,
    token: str = "",
    limits: RequestLimits | None = None,
) -> FastAPI:
    """The FastAPI application. Concurrent requests share batches.

    Answers other than 200 are ``{"detail": why}``: 400 for what cannot be searched for (blank or
    overlong query, ``topk`` above the corpus), 401 without the token, 411 and 413 for bodies of
    unknown size and too large, 422 for what is not of the protocol, 503 where too many wait, 504
    where it took too long.
    """
    from fastapi import FastAPI, Response
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel

    class RetrieveRequest(BaseModel):
        queries: list[str]
        topk: int | None = None
        return_scores: bool = False

    limits = limits or RequestLimits()
    batcher: MicroBatcher[str, list[Hit]] = MicroBatcher(
        index.search,
        max_batch=batch_size,
        max_wait_ms=max_batch_wait_ms,
        max_waiting=limits.max_waiting,
    )
    metrics = ServerMetrics(index, batcher)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(title="retrieval_index", lifespan=lifespan)

    async def retrieve(request: RetrieveRequest) -> Any:
        began = time.monotonic()
        status, body = await _answer(batcher, limits, request)
        metrics.request(status, time.monotonic() - began)
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse(body, status_code=status, headers=headers)

    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "passages": len(index),
            "encoder": index.manifest.encoder,
            "stats": {**index.stats.as_dict(), "batches": batcher.batches},
        }

    async def prometheus() -> Any:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # Evaluated here because RetrieveRequest is local: postponed annotations cannot see it.
    retrieve.__annotations__["request"] = RetrieveRequest
    app.post("/retrieve")(retrieve)
    app.get("/health")(health)
    app.get("/metrics")(prometheus)
    app.add_middleware(
        Guard, token=token, max_body_bytes=limits.max_body_bytes, body_s=limits.timeout_s
    )
    return app


async def _answer(
    batcher: MicroBatcher[str, list[Hit]], limits: RequestLimits, request: Any
) -> tuple[int, dict[str, Any]]:
    """Status and body for a request of the protocol."""
    top_k = DEFAULT_TOP_K if request.topk is None else request.topk
    asked, most = len(request.queries), min(limits.max_queries, limits.max_waiting)
    if not 1 <= asked <= most:
        return 400, {"detail": f"{asked} queries; a request has 1 to {most}"}
    if top_k > limits.max_topk:
        return 400, {"detail": f"topk={top_k}; up to {limits.max_topk} passages are given"}
    try:
        async with asyncio.timeout(limits.timeout_s):
            hits = await batcher.search(request.queries, top_k)
    except QueryError as error:
        return 400, {"detail": str(error)}
    except OverloadError as error:
        return 503, {"detail": str(error)}
    except TimeoutError:
        return 504, {"detail": f"no answer within {limits.timeout_s:g} s"}
    return 200, response_body(hits, request.return_scores)


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


def serve(index: DenseIndex, listening: socket.socket, **options: Any) -> None:
    """Serve until interrupted; ``options`` are those of ``make_app``."""
    import uvicorn

    config = uvicorn.Config(
        make_app(index, **options),
        log_level="warning",
        access_log=False,
        limit_concurrency=_CONNECTIONS,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
