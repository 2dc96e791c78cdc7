"""A query over shards that different actors have: merged, failed, or answered in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from actors.shard_search import ShardSearch, merge_rankings
from pipeline.errors import InfrastructureError, UserError
from pipeline.types import Passage


def passage(name: str, score: float) -> Passage:
    return Passage(doc_id=name, title=name, text="", score=score)


@dataclass
class Shard:
    """Calls as `PoolClient` makes them; its rows are found for every vector."""

    rows: Sequence[tuple[int, float]] = ()
    error: Exception | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)

    async def call(self, method: str, *args: Any, like: str = "") -> Any:
        assert like == "" or method in ("embed", "search_rows")
        self.calls.append((method, args))
        if self.error is not None:
            raise self.error
        if method == "embed":
            return np.ones((len(args[0]), 2), dtype=np.float32)
        if method == "search_rows":
            vectors, top_k = args
            found = [(row, passage(f"p{row}", score)) for row, score in self.rows]
            return [found[:top_k] for _ in vectors]
        return None


def over(*shards: Shard, partial: bool = False) -> ShardSearch:
    return ShardSearch(Shard(), tuple(shards), partial)  # type: ignore[arg-type]


LEFT = Shard(rows=[(1, 0.9), (0, 0.5)])
RIGHT = Shard(rows=[(7, 0.7), (5, 0.5)])
LOST = InfrastructureError("'search_rows' failed 3 times")


async def test_the_best_of_all_shards_come_in_order_with_ties_by_row() -> None:
    found = await over(LEFT, RIGHT).search(["a", "b"], 4)

    assert [[p.doc_id for p in passages] for passages in found] == [["p1", "p7", "p0", "p5"]] * 2


async def test_blank_queries_find_nothing_and_are_not_embedded() -> None:
    search = over(LEFT, RIGHT)
    assert await search.search([" ", "a", ""], 1) == [(), (passage("p1", 0.9),), ()]
    assert search.everyone.calls[0] == ("embed", (["a"],))
    assert await over(Shard(error=LOST)).search([" "], 1) == [()]


async def test_a_failed_shard_fails_the_search() -> None:
    with pytest.raises(InfrastructureError, match="failed 3 times"):
        await over(LEFT, Shard(error=LOST)).search(["a"], 2)


async def test_where_parts_are_allowed_the_others_answer_and_it_is_counted() -> None:
    left = Shard(rows=LEFT.rows)
    found = await over(Shard(error=LOST), left, partial=True).search(["a", "b"], 2)

    assert [p.doc_id for p in found[0]] == ["p1", "p0"]
    assert left.calls[-1] == ("count_degraded", (2,))


async def test_where_all_fail_nothing_is_passed_off_as_found() -> None:
    with pytest.raises(InfrastructureError, match="all shards failed"):
        await over(Shard(error=LOST), Shard(error=LOST), partial=True).search(["a"], 2)


async def test_a_users_error_is_one_with_parts_allowed_too() -> None:
    with pytest.raises(UserError, match="top_k"):
        await over(LEFT, Shard(error=UserError("top_k=9")), partial=True).search(["a"], 9)


def test_fewer_than_wanted_are_all_there_are() -> None:
    assert merge_rankings([[(3, passage("p3", 0.1))], []], 5) == (passage("p3", 0.1),)
