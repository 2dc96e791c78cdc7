"""Who asks for what in the attention of a micro-batch: rows of similar shape in padded blocks.

A row is a trajectory: the nodes of its tokens (``pipeline.batch`` has the picture), and those
places in it whose nodes ask here. Each node asks once, in the first row that it is in; it sees the
keys of its whole row up to its own place. Attention alone is padded, and only among rows of similar
shape.

Legend: ``_N`` a node that asks, ``_B`` a row of a block, ``_M`` a token of its longest row, ``_Q``
a query of the row with most of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["AttentionBlock", "AttentionPlan", "Row", "new_nodes", "nobody_asks", "plan_attention"]

_MAX_PADDING = 0.25  # of the query-key pairs of a block


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBlock:
    """Rows of similar shape: what each asks for, and what it may see. Padded on the right.

    A query sees the keys at its own place and before. In a ``whole`` block every row asks for all
    of its tokens, so that ``queries_BQ`` is ``keys_BM``.
    """

    keys_BM: np.ndarray  # int64, node of each token
    queries_BQ: np.ndarray  # int64, nodes that no other row asks for
    places_BQ: np.ndarray  # int64, place of each query in its row
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Attention of one layer. ``slots_N`` int64: the place of each node that asks, in order of
    nodes, among the blocks' queries, all flat and end to end."""

    blocks: tuple[AttentionBlock, ...]
    slots_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Row:
    """A trajectory's path, and those places in it whose nodes ask in this row, in order."""

    path: np.ndarray
    places_Q: np.ndarray

    @property
    def num_queries(self) -> int:
        """Places that ask."""
        return len(self.places_Q)

    @property
    def num_keys(self) -> int:
        """Up to the last place that asks."""
        return int(self.places_Q[-1]) + 1

    @property
    def whole(self) -> bool:
        """Whether every place asks."""
        return self.num_queries == self.num_keys

    @property
    def area(self) -> int:
        """Query-key pairs without padding (the causal half is not taken off)."""
        return self.num_queries * self.num_keys


def new_nodes(paths: list[np.ndarray]) -> Iterator[Row]:
    """Every node asks in the first row that it is in. Nodes are numbered as they appear, so a row's
    own ones are above all before."""
    seen = 0
    for path in paths:
        yield Row(path, np.arange(np.searchsorted(path, seen), len(path)))
        seen = max(seen, int(path[-1]) + 1)


def plan_attention(rows: Sequence[Row]) -> AttentionPlan:
    """Rows as padded blocks of similar shape."""
    blocks: list[AttentionBlock] = []
    nodes, slots = [], []
    offset = 0
    for whole in (True, False):
        chosen = [row for row in rows if row.num_queries and row.whole is whole]
        for block in _similar(sorted(chosen, key=lambda r: (-r.num_queries, -r.num_keys))):
            made = _attention_block(block, whole)
            width = made.queries_BQ.shape[1]
            for b, row in enumerate(block):
                nodes.append(row.path[row.places_Q])
                slots.append(offset + b * width + np.arange(row.num_queries))
            blocks.append(made)
            offset += made.queries_BQ.size
    order = np.argsort(np.concatenate(nodes))  # each node asks once
    return AttentionPlan(blocks=tuple(blocks), slots_N=np.concatenate(slots)[order])


def nobody_asks(plan: AttentionPlan) -> AttentionPlan:
    """The same blocks, no answer of which is read."""
    return AttentionPlan(blocks=plan.blocks, slots_N=np.zeros(0, np.int64))


def _attention_block(rows: Sequence[Row], whole: bool) -> AttentionBlock:
    shape = (len(rows), max(row.num_queries for row in rows))
    keys_BM = np.zeros((len(rows), max(row.num_keys for row in rows)), np.int64)
    queries_BQ, places_BQ = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for b, row in enumerate(rows):
        keys_BM[b, : row.num_keys] = row.path[: row.num_keys]
        queries_BQ[b, : row.num_queries] = row.path[row.places_Q]
        places_BQ[b, : row.num_queries] = row.places_Q
    return AttentionBlock(keys_BM=keys_BM, queries_BQ=queries_BQ, places_BQ=places_BQ, whole=whole)


def _similar(rows: list[Row]) -> Iterator[list[Row]]:
    """Cut rows, those with most queries first, where padding would exceed a share of a block."""
    block: list[Row] = []
    area = longest = 0
    for row in rows:
        area, longest = area + row.area, max(longest, row.num_keys)
        padded = (len(block) + 1) * longest * (block[0] if block else row).num_queries
        if block and area < (1 - _MAX_PADDING) * padded:
            yield block
            block, area, longest = [], row.area, row.num_keys
        block.append(row)
    if block:
        yield block
