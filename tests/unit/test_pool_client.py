"""A pool seen from another actor: its calls end before the caller's own deadline, by name."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from actors import pool_client
from actors.pool_client import PoolClient
from actors.ray_pools import RayRetrieverPool
from pipeline.errors import ActorLostError, InfrastructureError


def client(**changes: Any) -> PoolClient:
    values = {"timeout_s": 60.0, "max_retries": 2, "return_timeout_s": 300.0, "deadline_s": 0.05}
    made = PoolClient(["retriever-0"], "namespace", **{**values, **changes})
    travelled: PoolClient = pickle.loads(pickle.dumps(made))
    travelled._hosts["retriever-0"] = object()
    return travelled


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retriever that Ray starts again and that is never ready."""

    async def call(name: str, host: Any, method: str, *args: Any, timeout_s: float) -> Any:
        raise ActorLostError(f"{name} was lost during {method!r}: it is not ready yet")

    async def never(name: str, host: Any, timeout_s: float) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(pool_client, "call_actor", call)
    monkeypatch.setattr(pool_client, "wait_until_back", never)
    monkeypatch.setattr(PoolClient, "_host", lambda self, name: None)


@pytest.mark.usefixtures("lost")
async def test_a_retriever_that_never_comes_back_is_named_before_the_caller_is_late() -> None:
    with pytest.raises(
        InfrastructureError,
        match=r"'search' was not answered by retriever-0 within 0\.05 s; before: retriever-0 was "
        r"lost during 'search': it is not ready yet",
    ):
        async with asyncio.timeout(10):
            await client().call("search", ["q"], 3)


async def test_one_that_does_not_answer_at_all_is_named_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def call(name: str, host: Any, method: str, *args: Any, timeout_s: float) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(pool_client, "call_actor", call)
    with pytest.raises(InfrastructureError, match=r"by retriever-0 within 0\.05 s$"):
        async with asyncio.timeout(10):
            await client().call("search", ["q"], 3)


@pytest.mark.parametrize(("shards", "each_s"), [(1, 150.0), (2, 75.0)])
def test_a_search_from_an_engine_has_a_deadline_over_all_that_it_calls(
    shards: int, each_s: float
) -> None:
    """Over shards it calls twice in turn: embed, then search."""

    class Actors:
        def client(self, *, deadline_s: float | None = None, **options: Any) -> float | None:
            return deadline_s

    actors: Any = Actors()
    search: Any = RayRetrieverPool(actors, shards).search_from_actors(deadline_s=150.0)
    if search.sharded is None:
        assert search.client == each_s
    else:
        assert {search.sharded.everyone, *search.sharded.shards} == {each_s}
