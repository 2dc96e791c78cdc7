"""Several episodes in lockstep: what an engine or a retriever is asked depends on the episodes
alone.

    episode 0 ── generate ─┐
    episode 1 ── search ───┼─► everybody waits: all searches in one call, else all generations
    episode 2 ── generate ─┘                    in the order of the episodes

Left to themselves, episodes meet in batches as time has it, and a batch's composition changes the
last bits of its results. Here nothing is asked before every episode waits for something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.types import Generation, Passage, Sampling

__all__ = ["GenerateAll", "Lockstep", "SearchAll"]

GenerateAll = Callable[[Sequence[tuple[list[int], Sampling]]], Awaitable[Sequence[Generation]]]
SearchAll = Callable[[Sequence[str], int], Awaitable[Sequence[tuple[Passage, ...]]]]


@dataclass(slots=True, eq=False)
class _Wish:
    """What an episode waits for. ``place`` is its own, ``number`` counts its wishes."""

    place: int
    number: int
    argument: Any  # (prompt, sampling) of a generation, (query, top_k) of a search
    answer: asyncio.Future[Any]


class Lockstep:
    """For ``places`` episodes, numbered from 0, on one event loop. Each calls `generate` and
    `search` with its number and, whatever happens, `leave` at its end."""

    def __init__(self, places: int, generate_all: GenerateAll, search_all: SearchAll) -> None:
        self._live = set(range(places))
        self._generate_all, self._search_all = generate_all, search_all
        self._generations: list[_Wish] = []
        self._searches: list[_Wish] = []
        self._count = 0
        self._answering: asyncio.Task[None] | None = None

    async def generate(self, place: int, prompt: list[int], sampling: Sampling) -> Generation:
        """``Generate`` of an episode. Raises what the engine raises for the whole batch."""
        generation: Generation = await self._wish(self._generations, place, (prompt, sampling))
        return generation

    async def search(self, place: int, query: str, top_k: int) -> tuple[Passage, ...]:
        """``Search`` of an episode. Raises what the retriever raises for the whole batch."""
        passages: tuple[Passage, ...] = await self._wish(self._searches, place, (query, top_k))
        return passages

    def leave(self, place: int) -> None:
        """The episode has ended: the others no longer wait for it."""
        self._live.discard(place)
        self._answer_when_all_wait()

    async def _wish(self, wishes: list[_Wish], place: int, argument: Any) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        wishes.append(_Wish(place, self._count, argument, answer))
        self._count += 1
        self._answer_when_all_wait()
        return await answer

    def _answer_when_all_wait(self) -> None:
        waiting = {wish.place for wish in (*self._generations, *self._searches)}
        if self._answering is None and self._live and waiting >= self._live:
            # A task of its own: it runs after the other queries of the same round have come.
            self._answering = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        """One batch: the searches, where there are any, else the generations."""
        wishes, call = (
            (self._searches, self._ask_retriever)
            if self._searches
            else (self._generations, self._ask_engine)
        )
        batch = sorted(wishes, key=lambda wish: (wish.place, wish.number))
        wishes.clear()
        try:
            results = await call([wish.argument for wish in batch])
        except Exception as error:  # every episode of the batch is told
            for wish in batch:
                if not wish.answer.done():
                    wish.answer.set_exception(error)
        else:
            for wish, result in zip(batch, results, strict=True):
                if not wish.answer.done():
                    wish.answer.set_result(result)
        self._answering = None

    async def _ask_engine(self, asked: Sequence[tuple[list[int], Sampling]]) -> Sequence[Any]:
        return await self._generate_all(asked)

    async def _ask_retriever(self, asked: Sequence[tuple[str, int]]) -> Sequence[Any]:
        found: dict[int, tuple[Passage, ...]] = {}
        for wanted in sorted({top_k for _, top_k in asked}):  # one, but for forbidden passages
            places = [i for i, (_, top_k) in enumerate(asked) if top_k == wanted]
            answers = await self._search_all([asked[i][0] for i in places], wanted)
            found.update(zip(places, answers, strict=True))
        return [found[i] for i in range(len(asked))]
