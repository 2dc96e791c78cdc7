"""The sharded retriever pool on real Ray, some of whose actors are killed.

Actors 0 and 2 are replicas of the first shard, actor 1 alone has the second. While a file (the
gate) is there, an actor that was started again does not become ready: an outage lasts as long as a
test needs it.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from actors.cluster import running_cluster
from actors.health import Health, wait_until_back
from actors.placement import PlacementPlan
from actors.pool import ActorPool, Member
from actors.ray_pools import RayRetrieverPool
from actors.retriever import Retriever
from pipeline.config import ClusterConfig, GleanerConfig, RetrieverConfig, TaskConfig
from pipeline.errors import InfrastructureError
from pipeline.launch import retriever_spec
from pipeline.types import Passage
from retrieval_index import build_index
from tests.integration.retrieval.facts import FACTS, MINILM, QUESTIONS
from tests.support.gated_retriever import gated_retriever

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = RetrieverConfig(
    encoder=MINILM, num_actors=3, shards=2, start_timeout_s=240, request_timeout_s=120
)
ASKED = [*QUESTIONS, " "]
ALL = len(FACTS)
LIMIT_S = 120.0  # of any wait; what is waited for takes seconds

Found = list[tuple[Passage, ...]]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    config = ClusterConfig(address="local", num_cpus=2, object_store_gib=0.1)
    with running_cluster(config, PlacementPlan(actors=(), bundles=())) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(corpus: Path, index: Path) -> Found:
    """What one index that is not sharded finds: all passages, best first."""
    retriever = Retriever(replace(CONFIG, shards=1), str(index), str(corpus))
    return asyncio.run(retriever.search(ASKED, ALL))


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate") / "closed"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(
    gate: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ActorPool]:
    """The pool as a run makes it, but for the gate. Rows 0 to 3 are the first shard."""
    index = tmp_path_factory.mktemp("sharded") / "index"
    build_index(corpus, index, MINILM, shards=2, progress=False)
    task = TaskConfig(name="facts", corpus=str(corpus), index=str(index))
    spec = retriever_spec(
        GleanerConfig(run_dir="unused", profile="cpu", task=task, retriever=CONFIG)
    )
    gated = replace(
        spec,
        factory=gated_retriever,
        members=[{**member, "gate": gate} for member in spec.members],
        health=Health(interval_s=0.5, timeout_s=LIMIT_S),
    )
    pool = await ActorPool.start(gated)
    yield pool
    gate.unlink(missing_ok=True)
    await pool.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def actors(started: ActorPool, gate: Path) -> ActorPool:
    """The pool with all of its actors at work."""
    gate.unlink(missing_ok=True)
    for member in started.members:
        await wait_until_back(member.name, member.host, LIMIT_S)
    return started


def kill(member: Member) -> None:
    """SIGKILL to the actor's process, which is gone when this returns."""
    process = psutil.Process(member.pid)
    process.kill()
    process.wait(LIMIT_S)


async def within_limit(awaited: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaited, LIMIT_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.1)


def assert_same(found: Found, expected: Found) -> None:
    """Passages, order and scores."""
    bare = [[replace(p, score=0.0) for p in passages] for passages in found]
    assert bare == [[replace(p, score=0.0) for p in passages] for passages in expected]
    for passages, wanted in zip(found, expected, strict=True):
        assert [p.score for p in passages] == pytest.approx([p.score for p in wanted], abs=1e-6)


def first(found: Found, top_k: int) -> Found:
    return [passages[:top_k] for passages in found]


def of_first_shard(found: Found) -> Found:
    return [tuple(p for p in passages if int(p.doc_id[1:]) < ALL // 2) for passages in found]


async def test_actors_of_shards_find_what_one_index_finds(actors: ActorPool, whole: Found) -> None:
    pool = RayRetrieverPool(actors, 2)
    for top_k in (1, 3, ALL):
        assert_same(await pool.search(ASKED, top_k), first(whole, top_k))
    travelled = pickle.loads(pickle.dumps(pool.search_from_actors()))
    assert_same([await travelled(ASKED[0], 3)], first(whole[:1], 3))
    stats = await pool.stats()
    assert stats["queries"] == 3 * len(QUESTIONS) + 1
    assert stats["degraded"] == 0


async def test_more_passages_than_all_shards_have_are_all_of_them(
    actors: ActorPool, whole: Found
) -> None:
    for partial in (False, True):
        assert_same(await RayRetrieverPool(actors, 2, partial).search(ASKED, ALL + 1), whole)


async def test_a_lost_shard_is_left_out_or_waited_for_as_configured(
    actors: ActorPool, gate: Path, whole: Found
) -> None:
    partial, strict = RayRetrieverPool(actors, 2, partial=True), RayRetrieverPool(actors, 2)
    gate.touch()
    killed = actors.members[1].pid
    kill(actors.members[1])

    # there is no process; then there is one, which loads
    waiting = asyncio.create_task(strict.search(ASKED, ALL))
    assert_same(await within_limit(partial.search(ASKED, ALL)), of_first_shard(whole))
    await until(lambda: actors.members[1].pid != killed)
    assert_same(await within_limit(partial.search(ASKED, 1)), first(of_first_shard(whole), 1))
    assert (await within_limit(partial.stats()))["degraded"] == 2 * len(QUESTIONS)

    # without partial it is waited for, for so long
    hasty = ActorPool(replace(actors.spec, start_timeout_s=1.0))
    hasty.members = actors.members
    with pytest.raises(InfrastructureError, match=r"retriever-1 did not come back within 1 s"):
        await within_limit(RayRetrieverPool(hasty, 2).search(ASKED, ALL))
    assert not waiting.done()

    # it comes back
    gate.unlink()
    assert_same(await within_limit(waiting), whole)
    assert_same(await within_limit(partial.search(ASKED, ALL)), whole)
    assert (await partial.stats())["degraded"] == 2 * len(QUESTIONS)


async def test_a_replica_answers_for_one_that_was_killed(
    actors: ActorPool, gate: Path, whole: Found
) -> None:
    gate.touch()
    strict, partial = RayRetrieverPool(actors, 2), RayRetrieverPool(actors, 2, partial=True)
    before = await strict.stats()
    kill(actors.members[0])
    for pool in (partial, strict):
        for found in await within_limit(
            asyncio.gather(*(pool.search(ASKED, ALL) for _ in range(4)))
        ):
            assert_same(found, whole)
    after = await within_limit(strict.stats())
    assert after["degraded"] == before["degraded"]
    assert after["queries"] == before["queries"] + 2 * 4 * len(QUESTIONS)  # no total fell
