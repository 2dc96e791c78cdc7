"""Tokens, sizes and limits of the HTTP server, over an index that answers as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from retrieval_index.errors import CorpusError, ServerError
from retrieval_index.http_guard import TOKEN_VARIABLE, Guard, RequestLimits, required_token
from retrieval_index.index import Hit, SearchStats
from retrieval_index.server import make_app

HIT = Hit("7", '"Paris"\nCapital of France.', 0.5)
ASKED = {"queries": ["capital of France"], "topk": 1}


class Held:
    """Answers every query with one passage, or with an error, once it is let go."""

    def __init__(self) -> None:
        self.manifest = SimpleNamespace(encoder="none")
        self.stats = SearchStats()
        self.error: Exception | None = None
        self.asked = threading.Event()
        self.let_go = threading.Event()
        self.let_go.set()

    def __len__(self) -> int:
        return 1

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        self.top_k = top_k
        self.asked.set()
        assert self.let_go.wait(timeout=30)
        if self.error is not None:
            raise self.error
        return [[HIT] for _ in queries]


@pytest.fixture
def held() -> Iterator[Held]:
    index = Held()
    yield index
    index.let_go.set()


def client(held: Held, **options: Any) -> httpx.AsyncClient:
    app = make_app(held, max_batch_wait_ms=0, **options)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


@pytest.mark.parametrize("path", ["/retrieve", "/health", "/metrics"])
@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3"}])
async def test_without_the_token_nothing_is_answered(
    held: Held, path: str, sent: dict[str, str]
) -> None:
    async with client(held, token="s3") as asking:
        answer = await asking.post(path, json=ASKED, headers=sent)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert TOKEN_VARIABLE in answer.json()["detail"]


async def test_with_the_token_it_is(held: Held) -> None:
    async with client(held, token="s3") as asking:
        answer = await asking.post("/retrieve", json=ASKED, headers={"Authorization": "Bearer s3"})
    assert answer.json()["result"][0][0]["id"] == "7"


async def test_a_body_of_unknown_size_is_refused(held: Held) -> None:
    async def chunks() -> Any:
        yield b"{}"

    async with client(held) as asking:
        answer = await asking.post("/retrieve", content=chunks())
    assert answer.status_code == 411


async def test_a_size_beside_a_chunked_body_is_not_believed(held: Held) -> None:
    async with client(held) as asking:
        answer = await asking.post(
            "/retrieve", content=b"{}", headers={"Transfer-Encoding": "chunked"}
        )
    assert answer.status_code == 411


async def test_more_passages_than_a_request_may_have_are_refused(held: Held) -> None:
    async with client(held) as asking:
        answer = await asking.post("/retrieve", json={**ASKED, "topk": 1001})
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "topk=1001; up to 1000 passages are given",
    )


async def search_r1(asking: httpx.AsyncClient, queries: list[str]) -> list[Any]:
    """As Search-R1's generation loop does: all samples in one request, no look at the status."""
    body = {"queries": queries, "topk": 3, "return_scores": True}
    found: list[Any] = (await asking.post("/retrieve", json=body)).json()["result"]
    return found


@pytest.mark.parametrize(
    ("queries", "blank"),
    [([], []), (["tea", "", "Chad", " \n"], [1, 3]), ([""], [0]), (["q"] * 2560, [])],
)
async def test_search_r1_gets_a_list_for_each_query_of_a_step(
    held: Held, queries: list[str], blank: list[int]
) -> None:
    async with client(held) as asking:
        found = await search_r1(asking, queries)
    hit = {"document": {"id": "7", "contents": HIT.contents}, "score": 0.5}
    assert found == [[] if n in blank else [hit] for n in range(len(queries))]


@pytest.mark.parametrize("topk", [{}, {"topk": None}, {"topk": 0}])
async def test_without_a_topk_the_default_is_taken(held: Held, topk: dict[str, Any]) -> None:
    async with client(held) as asking:
        assert (await asking.post("/retrieve", json={"queries": ["tea"], **topk})).is_success
    assert held.top_k == 3


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (CorpusError("c.jsonl, line 7: not valid JSON"), "CorpusError: c.jsonl, line 7: not valid"),
        (RuntimeError("secret"), "RuntimeError: unexpected; see the server's log"),
    ],
)
async def test_a_search_that_fails_is_told_and_counted(
    held: Held, error: Exception, detail: str
) -> None:
    held.error = error
    async with client(held) as asking:
        answer = await asking.post("/retrieve", json=ASKED)
        metrics = (await asking.get("/metrics")).text
    assert answer.status_code == 500
    assert answer.json()["detail"].startswith(detail)
    assert 'retrieval_requests_total{status="500"} 1.0' in metrics


@pytest.mark.parametrize(
    "limit",
    [
        {"max_queries": 0},
        {"max_waiting": 0},
        {"max_topk": -1},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
    ],
)
def test_limits_that_would_refuse_every_request_are_refused(limit: dict[str, Any]) -> None:
    (name,) = limit
    with pytest.raises(ServerError, match=f"{name}=.*: must be above 0"):
        RequestLimits(**limit)


async def test_a_body_that_does_not_come_is_given_up_on(held: Held) -> None:
    broken_off = asyncio.Event()

    async def app(scope: object, receive: Any, send: object) -> None:
        assert (await receive())["body"] == b"{"
        assert (await receive())["type"] == "http.disconnect"
        broken_off.set()

    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.sleep(60)

    guard = Guard(app, token="", max_body_bytes=10, body_s=0.05)
    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"9")]}
    await guard(scope, receive, None)  # type: ignore[arg-type]
    assert broken_off.is_set()


async def test_where_too_many_wait_others_are_told_to_come_again(held: Held) -> None:
    held.let_go.clear()
    async with client(held, batch_size=1, limits=RequestLimits(max_waiting=1)) as asking:
        first = asyncio.create_task(asking.post("/retrieve", json=ASKED))
        await asyncio.to_thread(held.asked.wait, 30)
        second = asyncio.create_task(asking.post("/retrieve", json=ASKED))
        while "retrieval_waiting 1.0" not in (await asking.get("/metrics")).text:
            await asyncio.sleep(0.01)
        third = await asking.post("/retrieve", json=ASKED)
        held.let_go.set()
        assert (await first).status_code == (await second).status_code == 200
    assert third.status_code == 503
    assert third.headers["Retry-After"] == "1"
    assert "1 queries wait already, the limit is 1" in third.json()["detail"]


async def test_what_takes_too_long_is_given_up_on(held: Held) -> None:
    held.let_go.clear()
    async with client(held, limits=RequestLimits(timeout_s=0.05)) as asking:
        answer = await asking.post("/retrieve", json=ASKED)
        held.let_go.set()
    assert (answer.status_code, answer.json()["detail"]) == (504, "no answer within 0.05 s")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_no_token_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert required_token(host) == ""
    monkeypatch.setenv(TOKEN_VARIABLE, "s3")
    assert required_token(host) == "s3"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "retrieval.example"])
def test_others_are_served_with_a_token_only(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ServerError, match=f"set {TOKEN_VARIABLE} to a secret"):
        required_token(host)
    monkeypatch.setenv(TOKEN_VARIABLE, "s3")
    assert required_token(host) == "s3"
