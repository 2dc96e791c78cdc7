"""The HTTP server: ``/retrieve`` as the field speaks it, ``/health`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from retrieval_index.batching import MicroBatcher
from retrieval_index.errors import OverloadError, QueryError, RetrievalError, ServerError
from retrieval_index.http_guard import Guard, RequestLimits
from retrieval_index.http_metrics import ServerMetrics
from retrieval_index.index import DenseIndex, Hit
from retrieval_index.protocol import DEFAULT_TOP_K, response_body

__all__ = ["LOOPBACK", "make_app", "open_socket", "serve"]

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_CONNECTIONS = 4096  # more are answered with 503


class RetrieveRequest(msgspec.Struct):
    """The body of ``POST /retrieve``; what else a client sends is passed over. ``topk`` 0 is the
    default, as Search-R1's server has it."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class RetrieveApp:
    """The handlers, and what they share. Concurrent requests share batches.

    A blank query finds nothing, and no queries have no results: clients of the field look at no
    status. Answers other than 200 are ``{"detail": why}``: 400 for what cannot be searched for
    (overlong query, ``topk`` above the corpus), 401 without the token, 411 and 413 for bodies of
    unknown size and too large, 422 for what is not of the protocol, 500 where index or corpus
    fail, 503 where too many wait, 504 where it took too long.
    """

    def __init__(
        self,
        index: DenseIndex,
        limits: RequestLimits,
        *,
        batch_size: int = 32,
        max_batch_wait_ms: float = 2.0,
    ) -> None:
        self._index, self._limits = index, limits
        self._batcher: MicroBatcher[str, list[Hit]] = MicroBatcher(
            index.search,
            max_batch=batch_size,
            max_wait_ms=max_batch_wait_ms,
            max_waiting=limits.max_waiting,
        )
        self._metrics = ServerMetrics(index, self._batcher)
        self._decoder = msgspec.json.Decoder(RetrieveRequest)

    async def retrieve(self, request: Request) -> Response:
        """``POST /retrieve``."""
        began = time.monotonic()
        try:
            asked = self._decoder.decode(await request.body())
        except ClientDisconnect:
            return Response(status_code=408)
        except msgspec.DecodeError as error:  # of JSON, and of types
            status, body = 422, {"detail": f"not a request of the protocol: {error}"}
        else:
            status, body = await _answer(self._batcher, self._limits, asked)
        self._metrics.request(status, time.monotonic() - began)
        return _json(body, status, {"Retry-After": "1"} if status == 503 else None)

    async def health(self, _: Request) -> Response:
        """``GET /health``."""
        stats = {**self._index.stats.as_dict(), "batches": self._batcher.batches}
        return _json(
            {
                "status": "ok",
                "passages": len(self._index),
                "encoder": self._index.manifest.encoder,
                "stats": stats,
            }
        )

    async def metrics(self, _: Request) -> Response:
        """``GET /metrics``."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._metrics.text(), media_type=kind)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """End the search thread with the server."""
        yield
        self._batcher.close()


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def make_app(
    index: DenseIndex, *, token: str = "", limits: RequestLimits | None = None, **batching: Any
) -> Starlette:
    """The ASGI application; ``batching`` as `RetrieveApp` takes it."""
    limits = limits or RequestLimits()
    handlers = RetrieveApp(index, limits, **batching)
    guard = Middleware(
        Guard, token=token, max_body_bytes=limits.max_body_bytes, body_s=limits.timeout_s
    )
    return Starlette(
        routes=[
            Route("/retrieve", handlers.retrieve, methods=["POST"]),
            Route("/health", handlers.health),
            Route("/metrics", handlers.metrics),
        ],
        middleware=[guard],
        lifespan=handlers.lifespan,
    )


async def _answer(
    batcher: MicroBatcher[str, list[Hit]], limits: RequestLimits, request: RetrieveRequest
) -> tuple[int, dict[str, Any]]:
    """Status and body for a request of the protocol."""
    top_k = request.topk or DEFAULT_TOP_K
    most = min(limits.max_queries, limits.max_waiting)
    if len(request.queries) > most:
        return 400, {"detail": f"{len(request.queries)} queries; a request has up to {most}"}
    if top_k > limits.max_topk:
        return 400, {"detail": f"topk={top_k}; up to {limits.max_topk} passages are given"}
    try:
        async with asyncio.timeout(limits.timeout_s):
            found = iter(await batcher.search([q for q in request.queries if q.strip()], top_k))
    except QueryError as error:
        return 400, {"detail": str(error)}
    except OverloadError as error:
        return 503, {"detail": str(error)}
    except TimeoutError:
        return 504, {"detail": f"no answer within {limits.timeout_s:g} s"}
    except Exception as error:  # a transport boundary: the server lives on, and counts it
        logger.exception("a search failed")
        why = error if isinstance(error, RetrievalError) else "unexpected; see the server's log"
        return 500, {"detail": f"{type(error).__name__}: {why}"}
    hits = [next(found) if query.strip() else [] for query in request.queries]
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
