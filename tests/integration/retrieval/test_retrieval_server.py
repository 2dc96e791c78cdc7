"""The HTTP server over real sockets, spoken to as Search-R1 does and by our own client."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retrieval_index import DenseIndex, RetrieveClient
from retrieval_index.errors import ServerError
from tests.integration.retrieval.facts import FACTS, QUESTIONS

BERLIN = {"id": "p1", "contents": '"Berlin"\nBerlin is the capital of Germany.'}
CAPITAL = "What is the capital of Germany?"


def post(url: str, body: object) -> tuple[int, Any]:
    """Status and JSON of a POST, as a plain client gets them."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_search_r1_request_with_scores(server: str) -> None:
    status, body = post(
        f"{server}/retrieve",
        {"queries": [CAPITAL, "liquid metal"], "topk": 2, "return_scores": True},
    )

    assert status == 200
    assert [len(hits) for hits in body["result"]] == [2, 2]
    first = body["result"][0][0]
    assert first["document"] == BERLIN
    assert first["score"] > body["result"][0][1]["score"]
    assert body["result"][1][0]["document"]["contents"].startswith('"Mercury (element)"\n')


def test_without_return_scores_the_documents_are_bare(server: str) -> None:
    status, body = post(f"{server}/retrieve", {"queries": [CAPITAL], "topk": 1})

    assert (status, body) == (200, {"result": [[BERLIN]]})


def test_without_topk_three_passages_come(server: str) -> None:
    _, body = post(f"{server}/retrieve", {"queries": [CAPITAL], "return_scores": False})

    assert [len(hits) for hits in body["result"]] == [3]


def test_a_sample_without_a_query_does_not_cost_the_others_theirs(server: str) -> None:
    asked = {"queries": ["", CAPITAL], "topk": 1, "return_scores": False}

    assert post(f"{server}/retrieve", asked) == (200, {"result": [[], [BERLIN]]})
    assert post(f"{server}/retrieve", {**asked, "queries": []}) == (200, {"result": []})


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"queries": [CAPITAL], "topk": 9}, 400, "between 1 and the 8 passages"),
        ({"queries": [CAPITAL], "topk": -1}, 400, "between 1 and the 8 passages"),
        ({"queries": ["x"] * 4097, "topk": 1}, 400, "4097 queries; a request has up to 4096"),
        (b'{"queries": ["x\\ud83d"]}', 422, "not a request of the protocol"),
        ({"queries": ["x" * 100_000], "topk": 1}, 400, "query 0 has 100,000 characters"),
        (b" " * (5 << 20), 413, "5,242,880 bytes; a request may have 4,194,304"),
        ({"queries": CAPITAL, "topk": 1}, 422, "Expected `array`, got `str` - at `$.queries`"),
        ({"topk": 1}, 422, "missing required field `queries`"),
        (b"{", 422, "Input data was truncated"),
    ],
)
def test_a_bad_request_says_why(server: str, body: object, status: int, reason: str) -> None:
    got, answer = post(f"{server}/retrieve", body)

    assert got == status
    assert reason in json.dumps(answer["detail"])


def test_the_client_returns_the_hits_of_the_index(server: str, index: Path) -> None:
    with DenseIndex.open(index) as opened, RetrieveClient(server) as client:
        here = opened.search(list(QUESTIONS), 3)
        there = client.search(list(QUESTIONS), 3)

    assert [[hit.doc_id for hit in hits] for hits in there] == [
        [hit.doc_id for hit in hits] for hits in here
    ]
    assert [(hit.title, hit.text) for hit in there[0]] == [(h.title, h.text) for h in here[0]]
    assert [hit.score for hit in there[0]] == pytest.approx([h.score for h in here[0]], abs=1e-5)


def test_concurrent_clients_each_get_their_own_answer(server: str) -> None:
    def ask(title: str) -> str:
        with RetrieveClient(server) as client:
            return client.search([FACTS[title]], 1)[0][0].title

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, FACTS)) == list(FACTS)


def test_health_counts_queries_and_cache_hits(server: str) -> None:
    before = json.load(urllib.request.urlopen(f"{server}/health", timeout=60))
    for _ in range(2):
        post(f"{server}/retrieve", {"queries": ["only asked here"], "topk": 1})
    after = json.load(urllib.request.urlopen(f"{server}/health", timeout=60))

    assert (after["status"], after["passages"]) == ("ok", 8)
    assert after["stats"]["queries"] - before["stats"]["queries"] == 2
    assert after["stats"]["encoded"] - before["stats"]["encoded"] == 1
    assert after["stats"]["cache_hits"] - before["stats"]["cache_hits"] == 1


def test_metrics_are_in_the_format_of_prometheus(server: str) -> None:
    post(f"{server}/retrieve", {"queries": ["for the metrics"], "topk": 1})
    post(f"{server}/retrieve", {"queries": ["x"], "topk": 9})
    with urllib.request.urlopen(f"{server}/metrics", timeout=60) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        rows = [line.rpartition(" ") for line in response.read().decode().splitlines()]
    values = {name: float(value) for name, _, value in rows if not name.startswith("#")}
    assert values["retrieval_passages"] == 8
    assert values["retrieval_queries_total"] >= 1
    assert values['retrieval_requests_total{status="200"}'] >= 1
    assert values['retrieval_requests_total{status="400"}'] >= 1
    assert values["retrieval_request_seconds_count"] >= 2


def test_a_refused_search_reaches_the_client_as_a_typed_error(server: str) -> None:
    with RetrieveClient(server) as client, pytest.raises(ServerError, match=r"HTTP 400.*top_k=9"):
        client.search(["x"], 9)


def test_a_busy_port_is_one_clear_line_and_exit_code_2(server: str, index: Path) -> None:
    port = server.rpartition(":")[2]
    command = [sys.executable, "-m", "retrieval_index", "serve", f"index={index}", f"port={port}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port} (Address already in")
    assert ended.stderr.count("\n") == 1


def test_a_server_that_is_not_there_is_a_typed_error() -> None:
    with socket.socket() as held:  # bound and not listening: nobody else can answer
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with RetrieveClient(url) as client, pytest.raises(ServerError, match="cannot be reached"):
            client.search(["x"], 1)


def test_a_server_that_does_not_answer_is_given_up_on() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            RetrieveClient(url, timeout_s=0.2) as client,
            pytest.raises(ServerError, match=r"no answer within 0\.2 s"),
        ):
            client.search(["x"], 1)
