"""What a request must pass before the server reads it: its token and its size."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, fields
from typing import Any

from starlette.responses import JSONResponse

from retrieval_index.errors import ServerError

__all__ = ["TOKEN_VARIABLE", "Guard", "RequestLimits", "required_token"]

TOKEN_VARIABLE = "GLEANER_RETRIEVAL_TOKEN"
_DRAIN_S = 5.0
_DRAINED = 16  # bodies of up to so many times the largest are received: else no answer is seen

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one request may ask for, and how long it and others may wait. Raises ServerError for
    limits that would refuse every request."""

    max_body_bytes: int = 4 << 20
    max_queries: int = 4096  # a request; clients of the field send a whole step's in one
    max_topk: int = 1000
    max_waiting: int = 16_384  # queries of all requests
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not value > 0:
                raise ServerError(f"{limit.name}={value}: must be above 0")


def required_token(host: str) -> str:
    """The bearer token that clients must send, from ``GLEANER_RETRIEVAL_TOKEN``; empty: none.

    Raises ServerError where ``host`` can be reached from elsewhere and there is no token.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token and not _is_loopback(host):
        raise ServerError(
            f"host={host}: others could reach it, so clients must prove themselves: set "
            f"{TOKEN_VARIABLE} to a secret here and there (openssl rand -hex 32 makes one), or "
            "serve on 127.0.0.1"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware: refuses requests without the token (401) and those whose body is too large
    (413) or of unknown size (411). What they send is thrown away. A body must come within
    ``body_s`` seconds."""

    def __init__(self, app: Any, *, token: str, max_body_bytes: int, body_s: float) -> None:
        self._app = app
        self._body_s = body_s
        self._wanted = f"Bearer {token}".encode() if token else b""
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, _within(receive, self._body_s), send)
            return
        await _drain(receive, _DRAINED * self._max_body_bytes, _DRAIN_S)
        status, why, headers = refusal
        await JSONResponse({"detail": why}, status_code=status, headers=headers)(
            scope, receive, send
        )

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        headers = dict(scope["headers"])
        if self._wanted and not hmac.compare_digest(
            headers.get(b"authorization", b""), self._wanted
        ):
            why = f"a bearer token is needed: send the server's {TOKEN_VARIABLE}"
            return 401, why, {"WWW-Authenticate": "Bearer"}
        if scope["method"] != "POST":
            return None
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or b"transfer-encoding" in headers:
            return 411, "the request must say its Content-Length", {}
        if int(length) > self._max_body_bytes:
            why = f"{int(length):,} bytes; a request may have {self._max_body_bytes:,}"
            return 413, why, {"Connection": "close"}
        return None


async def _drain(receive: Receive, most: int, seconds: float) -> None:
    """Receive a body and forget it; what is beyond ``most`` bytes or ``seconds`` is left."""
    received = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while received <= most:
                message = await receive()
                received += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def _within(receive: Receive, seconds: float) -> Receive:
    """``receive``, by which a body has so many seconds in all; then it counts as broken off."""
    deadline: float | None = None
    complete = False

    async def received() -> MutableMapping[str, Any]:
        nonlocal deadline, complete
        if complete:  # what follows is waiting for the client to go
            return await receive()
        now = asyncio.get_running_loop().time()
        deadline = now + seconds if deadline is None else deadline
        try:
            async with asyncio.timeout(deadline - now):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        complete = not message.get("more_body", False)
        return message

    return received
