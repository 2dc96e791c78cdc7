"""In lockstep what is asked depends on the episodes alone, not on who comes first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.episode.lockstep import Lockstep
from pipeline.errors import InfrastructureError
from pipeline.types import Generation, Passage, Sampling

SAMPLING = Sampling()


class Recorder:
    """Answers with the prompt's first token; remembers every batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[object]]] = []

    async def generate_all(self, asked: Sequence[tuple[list[int], Sampling]]) -> list[Generation]:
        self.batches.append(("generate", [prompt for prompt, _ in asked]))
        await asyncio.sleep(0)
        return [
            Generation(
                token_ids=np.array(prompt[:1], np.int32),
                logprobs=np.zeros(1, np.float32),
                versions=np.zeros(1, np.int32),
                stopped=True,
            )
            for prompt, _ in asked
        ]

    async def search_all(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        self.batches.append((f"search {top_k}", list(queries)))
        return [(Passage(doc_id=query, title="", text=""),) for query in queries]


async def episode(lockstep: Lockstep, place: int, rounds: int, rng: random.Random) -> list[str]:
    """``rounds`` of one generation and ``place`` searches, each after a delay of chance."""
    got = []
    for number in range(rounds):
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        generation = await lockstep.generate(place, [place, number], SAMPLING)
        assert generation.token_ids.tolist() == [place]
        queries = [f"{place}.{number}.{i}" for i in range(place)]
        found = await asyncio.gather(*(lockstep.search(place, query, 3) for query in queries))
        got += [passages[0].doc_id for passages in found]
        assert [passages[0].doc_id for passages in found] == queries
    lockstep.leave(place)
    return got


async def play(seed: int) -> list[tuple[str, list[object]]]:
    recorder, rng = Recorder(), random.Random(seed)
    lockstep = Lockstep(3, recorder.generate_all, recorder.search_all)
    async with asyncio.timeout(10):
        await asyncio.gather(*(episode(lockstep, place, 3 - place, rng) for place in range(3)))
    return recorder.batches


async def test_batches_are_the_same_whatever_the_timing() -> None:
    first = await play(0)
    assert first == [
        ("generate", [[0, 0], [1, 0], [2, 0]]),
        ("search 3", ["1.0.0", "2.0.0", "2.0.1"]),  # while episode 0 waits to generate again
        ("generate", [[0, 1], [1, 1]]),
        ("search 3", ["1.1.0"]),
        ("generate", [[0, 2]]),
    ]
    for seed in range(1, 20):
        assert await play(seed) == first


async def test_an_error_of_a_batch_reaches_each_of_its_episodes_and_the_others_go_on() -> None:
    recorder = Recorder()

    async def broken(queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        raise InfrastructureError("the retriever is down")

    lockstep = Lockstep(3, recorder.generate_all, broken)

    async def searching(place: int) -> str:
        try:
            await lockstep.search(place, "q", 3)
        except InfrastructureError as error:
            return str(error)
        finally:
            lockstep.leave(place)
        return "found"

    async def generating() -> str:
        await lockstep.generate(2, [2], SAMPLING)
        lockstep.leave(2)
        return "generated"

    async with asyncio.timeout(10):
        ends = await asyncio.gather(searching(0), searching(1), generating())
    assert ends == ["the retriever is down", "the retriever is down", "generated"]


@pytest.mark.parametrize("places", [1, 2])
async def test_nobody_is_waited_for_who_has_left(places: int) -> None:
    recorder = Recorder()
    lockstep = Lockstep(places + 1, recorder.generate_all, recorder.search_all)
    lockstep.leave(places)
    async with asyncio.timeout(10):
        await asyncio.gather(
            *(lockstep.generate(place, [place], SAMPLING) for place in range(places))
        )
    assert len(recorder.batches) == 1
