"""Which actor of a pool takes a call: where the same was asked, else the least loaded."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from actors import pool_client
from actors.pool_client import PoolClient
from pipeline.errors import InfrastructureError

NAMES = ["retriever-0", "retriever-1", "retriever-2"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """``(actor, query)`` of every call, of which none ends before all were made."""
    calls: list[tuple[str, str]] = []

    async def call(name: str, host: Any, method: str, query: str, *, timeout_s: float) -> str:
        calls.append((name, query))
        await asyncio.sleep(0)
        if query == f"bad for {name}":
            raise InfrastructureError(f"{name} failed")
        return name

    monkeypatch.setattr(pool_client, "call_actor", call)
    monkeypatch.setattr(PoolClient, "_host", lambda self, name: None)
    return calls


def client() -> PoolClient:
    return PoolClient(NAMES, "namespace", timeout_s=60, max_retries=2, return_timeout_s=0)


async def ask_together(*queries: str) -> list[str]:
    calling = client()
    return await asyncio.gather(*(calling.call("search", query, like=query) for query in queries))


@pytest.mark.usefixtures("asked")
async def test_the_samples_of_a_group_ask_one_actor_from_every_engine() -> None:
    first = await ask_together(*["capital of Chad"] * 8, *["river in Egypt"] * 8)
    second = await ask_together(*["river in Egypt"] * 8, *["capital of Chad"] * 8)

    assert len(set(first[:8])) == len(set(first[8:])) == 1
    assert second == [*first[8:], *first[:8]]


@pytest.mark.usefixtures("asked")
async def test_other_queries_are_spread_over_all() -> None:
    assert {*await ask_together(*(f"query {n}" for n in range(30)))} == set(NAMES)


@pytest.mark.usefixtures("asked")
async def test_an_actor_that_is_clearly_busier_is_passed_by() -> None:
    busiest, *others = Counter(await ask_together(*["the same"] * 40)).values()

    # it alone until it has 16 more than the others, then all in turn
    assert sorted([busiest, *others]) == [8, 8, 24]


async def test_where_it_fails_another_one_answers(asked: list[tuple[str, str]]) -> None:
    [home] = await ask_together("which?")
    asked.clear()

    answer = await client().call("search", f"bad for {home}", like="which?")
    assert answer != home
    assert [name for name, _ in asked] == [home, answer]
