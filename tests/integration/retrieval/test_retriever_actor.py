"""The retriever actor's plain class over the real encoder, and as a proxy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from actors.retriever import Retriever
from actors.shard_search import ShardSearch
from pipeline.config import RetrieverConfig
from pipeline.errors import InfrastructureError, UserError
from retrieval_index import build_index
from tests.integration.retrieval.facts import MINILM, QUESTIONS

CONFIG = RetrieverConfig(encoder=MINILM, max_batch_wait_ms=20.0)


@pytest.fixture(scope="module")
def loaded(corpus: Path, index: Path) -> Retriever:
    return Retriever(CONFIG, str(index), str(corpus))


@pytest.fixture
def retriever(loaded: Retriever) -> Retriever:
    return loaded


async def test_concurrent_searches_share_a_batch_and_find_their_own(retriever: Retriever) -> None:
    assert await retriever.ready()
    before = await retriever.stats()

    found = await asyncio.gather(*(retriever.search([question], 2) for question in QUESTIONS))

    assert [results[0][0].title for results in found] == list(QUESTIONS.values())
    assert [len(results[0]) for results in found] == [2] * len(QUESTIONS)
    after = await retriever.stats()
    assert after["queries"] - before["queries"] == len(QUESTIONS)
    assert after["batches"] - before["batches"] == 1
    assert after["busy_s"] > before["busy_s"]


async def test_the_eight_samples_of_a_group_cost_one_encoding(retriever: Retriever) -> None:
    before = await retriever.stats()

    await asyncio.gather(*(retriever.search(["asked by a whole group"], 3) for _ in range(8)))
    await retriever.search(["asked by a whole group"], 3)

    after = await retriever.stats()
    assert after["encoded"] - before["encoded"] == 1
    assert after["duplicates"] - before["duplicates"] == 7
    assert after["cache_hits"] - before["cache_hits"] == 1


async def test_a_blank_query_of_the_policy_finds_nothing_and_breaks_nothing(
    retriever: Retriever,
) -> None:
    blank, tea = await retriever.search([" ", "hot beverage from leaves"], 1)

    assert blank == ()
    assert [passage.title for passage in tea] == ["Tea"]


async def test_the_event_loop_stays_free_during_a_search(retriever: Retriever) -> None:
    long_search = asyncio.create_task(retriever.search([f"query {n}" for n in range(64)], 3))
    turns = 0
    while not long_search.done():
        await asyncio.sleep(0.001)
        turns += 1

    assert turns > 5


@dataclass
class Here:
    """Calls a retriever in this process."""

    retriever: Retriever

    async def call(self, method: str, *args: Any, like: str = "") -> Any:
        return await getattr(self.retriever, method)(*args)


async def test_shards_of_two_actors_find_what_one_index_finds(
    retriever: Retriever, corpus: Path, tmp_path: Path
) -> None:
    build_index(corpus, tmp_path / "index", MINILM, shards=2, progress=False)
    config = replace(CONFIG, shards=2)
    actors = [Here(Retriever(config, str(tmp_path / "index"), str(corpus), n)) for n in (0, 1)]
    sharded = ShardSearch(actors[0], tuple(actors), partial=False)  # type: ignore[arg-type]

    there = await sharded.search([*QUESTIONS, " "], 8)
    here = await retriever.search([*QUESTIONS, " "], 8)
    assert [[p.doc_id for p in found] for found in there] == [
        [p.doc_id for p in found] for found in here
    ]
    assert [p.score for p in there[0]] == pytest.approx([p.score for p in here[0]], abs=1e-5)
    assert (await actors[1].retriever.stats())["batches"] == 1
    assert (await actors[0].retriever.stats())["batches"] == 2  # it embedded, too


async def test_the_samples_of_a_group_search_a_shard_once(corpus: Path, index: Path) -> None:
    actor = Retriever(CONFIG, str(index), str(corpus))
    vectors = await actor.embed(["hot beverage from leaves", "liquid metal"])
    searched: list[int] = []
    search = actor._source.search_rows  # type: ignore[attr-defined]

    def counted(vectors: Any, top_k: int) -> Any:
        searched.append(len(vectors))
        return search(vectors, top_k)

    actor._source.search_rows = counted  # type: ignore[attr-defined]
    found = await asyncio.gather(*(actor.search_rows(vectors, 1) for _ in range(8)))

    assert searched == [2]
    assert [[p.title for _, p in ranking] for ranking in found[7]] == [
        ["Tea"],
        ["Mercury (element)"],
    ]


async def test_more_queries_than_may_wait_are_for_another_actor(corpus: Path, index: Path) -> None:
    actor = Retriever(replace(CONFIG, max_waiting=2), str(index), str(corpus))

    with pytest.raises(InfrastructureError, match="0 queries wait already, the limit is 2"):
        await actor.search(["one", "two", "three"], 1)
    assert len(await actor.search(["one", "two"], 1)) == 2


def test_another_number_of_shards_than_the_index_has_is_a_users_error(
    corpus: Path, index: Path
) -> None:
    with pytest.raises(UserError, match=r"has 1 shard, 3 are wanted.*corpus\.jsonl .* shards=3"):
        Retriever(replace(CONFIG, shards=3), str(index), str(corpus))


async def test_a_very_long_query_of_the_policy_is_cut(retriever: Retriever) -> None:
    [found] = await retriever.search(["hot beverage from leaves " * 5000], 1)

    assert len(found) == 1


async def test_more_passages_than_the_corpus_has_are_all_of_it(retriever: Retriever) -> None:
    """An episode asks for those that its question forbids, too."""
    assert await retriever.search(["tea"], 9) == await retriever.search(["tea"], 8)


def test_an_index_of_other_prefixes_is_a_users_error(corpus: Path, index: Path) -> None:
    with pytest.raises(UserError, match="query_prefix"):
        Retriever(replace(CONFIG, query_prefix="query: "), str(index), str(corpus))


def test_threads_come_from_the_config(corpus: Path, index: Path) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        Retriever(replace(CONFIG, threads=2), str(index), str(corpus))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


async def test_with_a_url_it_passes_searches_on(retriever: Retriever, server: str) -> None:
    proxy = Retriever(replace(CONFIG, encoder="", url=server), "", "")

    there = await asyncio.gather(*(proxy.search([question], 2) for question in QUESTIONS))
    here = await asyncio.gather(*(retriever.search([question], 2) for question in QUESTIONS))

    assert [[p.doc_id for p in results[0]] for results in there] == [
        [p.doc_id for p in results[0]] for results in here
    ]
    assert (await proxy.stats())["queries"] == len(QUESTIONS)


async def test_a_dead_endpoint_is_an_infrastructure_error() -> None:
    proxy = Retriever(replace(CONFIG, encoder="", url="http://127.0.0.1:9"), "", "")

    with pytest.raises(InfrastructureError, match="cannot be reached"):
        await proxy.search(["x"], 1)
