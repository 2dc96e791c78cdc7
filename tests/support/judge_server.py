"""A real HTTP server that speaks ``/v1/chat/completions`` and does what a test tells it.

with JudgeServer() as server:
    server.queue(refusal(503), completion("no verdict"))  # the next answers, in order
    server.judge = lambda shown: (1, 0)                   # all others: verdicts by this rule
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

__all__ = [
    "GONE",
    "Answer",
    "Asked",
    "JudgeServer",
    "by_the_words",
    "completion",
    "garbled",
    "refusal",
    "verdict",
]

_MARK = re.compile(r"[0-9a-f]{8,64}")
GONE = "gone"  # in place of a usage: the answer has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that arrived."""

    headers: Mapping[str, str]  # names in lower case
    body: Mapping[str, Any]
    at: float  # seconds, of a clock that never goes back

    @property
    def text(self) -> str:
        """What the user's message says."""
        return str(self.body["messages"][-1]["content"])

    @property
    def mark(self) -> str:
        """The line before and after the trace."""
        return next(line for line in self.text.split("\n") if _MARK.fullmatch(line))

    @property
    def trace(self) -> list[dict[str, Any]]:
        """What stands between the marks, line by line."""
        lines = self.text.split("\n")
        first, last = (n for n, line in enumerate(lines) if line == self.mark)
        return [json.loads(line) for line in lines[first + 1 : last]]

    @property
    def about(self) -> str:
        """The question of the trace; empty for a question that holds none."""
        return str(self.trace[0]["question"]) if self.is_about_a_trace else ""

    @property
    def is_about_a_trace(self) -> bool:
        """It is not the one that proves that the endpoint answers."""
        return any(_MARK.fullmatch(line) for line in self.text.split("\n"))

    @property
    def wants_all(self) -> bool:
        """It asks for all rounds together."""
        asked = self.text.rpartition(self.mark)[2]
        return '"rounds"' in asked or "all" in asked.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server sends. ``cut`` closes the connection in the middle of the body;
    ``trickle_s`` lies between two bytes; ``wait_s`` before the first."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str = "application/json"
    wait_s: float = 0.0
    trickle_s: float = 0.0
    cut: bool = False


Rule = Callable[[Mapping[str, Any]], tuple[int, int]]


def by_the_words(shown: Mapping[str, Any]) -> tuple[int, int]:
    """The default rule: a passage that says "gold" is useful, reasoning that says "so" correct."""
    return (
        int(any("gold" in passage["text"] for passage in shown["passages"])),
        int("so" in shown["reasoning"].split()),
    )


def verdict(utility: int, correctness: int, rationale: str = "as it is") -> str:
    """One round's verdict as a model writes it."""
    return json.dumps({"rationale": rationale, "utility": utility, "correctness": correctness})


def completion(content: Any, usage: Any = None, **changes: Any) -> Answer:
    """A chat completion with this content; ``usage`` is 10 tokens in and 5 out, or what is given
    (``GONE``: it has none)."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
            }
        ],
        "usage": usage
        or {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None},
    }
    if usage == GONE:
        del body["usage"]
    return Answer(body=json.dumps(body).encode(), **changes)


def refusal(
    status: int, message: str = "no", code: str | None = None, **headers: str | float
) -> Answer:
    """An error as OpenAI tells it. ``retry_after=...`` becomes the header."""
    return Answer(
        status=status,
        body=json.dumps({"error": {"message": message, "type": code, "code": code}}).encode(),
        headers={name.replace("_", "-"): str(value) for name, value in headers.items()},
    )


def garbled(body: Any, **changes: Any) -> Answer:
    """Status 200 and something else than a completion: text, or another JSON value."""
    text = body if isinstance(body, str) else json.dumps(body)
    return Answer(body=text.encode(), **changes)


class JudgeServer:
    """Listens on a free port of 127.0.0.1 from the start of the ``with`` block to its end."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []  # what arrived, in order
        self.most_at_once = 0  # requests in hand
        self.judge: Rule = by_the_words
        self.every: Callable[[Asked], Answer | None] = lambda asked: None  # goes before ``judge``
        self.wait_s = 0.0  # before a good answer
        self._queue: deque[Answer] = deque()
        self._in_hand = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        app = Starlette(routes=[Route("/v1/chat/completions", self._serve, methods=["POST"])])
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="critical",
                lifespan="off",
                timeout_keep_alive=3600,  # it never closes what a client is about to use
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=30)
        self._socket.close()

    @property
    def base_url(self) -> str:
        """What ``judge.base_url`` is for it."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    @property
    def judged(self) -> list[Asked]:
        """The requests that were about a trace."""
        return [asked for asked in self.asked if asked.is_about_a_trace]

    def queue(self, *answers: Answer, times: int = 1) -> None:
        """The next requests are answered so, whatever they ask."""
        self._queue.extend(answers * times)

    async def _serve(self, request: Request) -> Response:
        body = json.loads(await request.body())
        asked = Asked(headers=dict(request.headers), body=body, at=time.monotonic())
        self.asked.append(asked)
        self._in_hand += 1
        self.most_at_once = max(self.most_at_once, self._in_hand)
        try:
            answer = self._queue.popleft() if self._queue else self.every(asked)
            answer = answer or self._verdicts(asked)
            await asyncio.sleep(answer.wait_s)
            return _response(answer)
        finally:
            self._in_hand -= 1

    def _verdicts(self, asked: Asked) -> Answer:
        if not asked.is_about_a_trace:
            return completion('{"note": "yes", "ok": true}', wait_s=self.wait_s)
        rounds = asked.trace[1:]
        rows = [json.loads(verdict(*self.judge(shown), f"on {shown['query']}")) for shown in rounds]
        content: Any = {"rounds": rows} if asked.wants_all else rows[-1]
        return completion(json.dumps(content), wait_s=self.wait_s)


def _response(answer: Answer) -> Response:
    if not (answer.cut or answer.trickle_s):
        return Response(answer.body, answer.status, headers=answer.headers, media_type=answer.type)
    headers = {**answer.headers, "content-length": str(len(answer.body))}
    parts = _cut(answer.body) if answer.cut else _trickled(answer.body, answer.trickle_s)
    return StreamingResponse(parts, answer.status, headers=headers, media_type=answer.type)


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    raise ConnectionAbortedError("as the test wants it")


async def _trickled(body: bytes, pause_s: float) -> AsyncIterator[bytes]:
    for byte in body:
        yield bytes([byte])
        await asyncio.sleep(pause_s)
