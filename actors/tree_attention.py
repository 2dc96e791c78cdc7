"""Attention over a prefix tree: hidden states are flat nodes, attention looks along trajectories.

``pipeline.batch`` numbers the distinct prefixes of a micro-batch. Here the keys and values of every
trajectory's nodes are copied to its row, each node asks in one row only, PyTorch's attention runs
on these blocks, and the answers go back to their nodes. A row that shares nothing with an earlier
one asks for all of its tokens: plain causal attention. Registered with transformers under ``NAME``,
so that any model with pluggable full attention can use it.

Legend: ``h`` heads, ``d`` head dimension, ``U`` nodes, ``B`` rows, ``M`` keys, ``Q`` queries, ``N``
nodes that ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.attention_plan import AttentionBlock, AttentionPlan

__all__ = ["NAME", "TreeBlock", "TreePlan", "register", "tree_plan"]

NAME = "gleaner_tree"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBlock:
    """``pipeline.attention_plan.AttentionBlock`` on a device."""

    keys_BM: Tensor  # int64
    queries_BQ: Tensor  # int64
    mask_BQM: Tensor | None  # bool[B, 1, Q, M], True where a query may look; None: causal


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePlan:
    """``pipeline.attention_plan.AttentionPlan`` on a device."""

    blocks: tuple[TreeBlock, ...]
    slots_N: Tensor  # int64


def tree_plan(plan: AttentionPlan, device: torch.device) -> TreePlan:
    """Move a plan to ``device``."""
    return TreePlan(
        blocks=tuple(_tree_block(block, device) for block in plan.blocks),
        slots_N=torch.tensor(plan.slots_N, device=device),
    )


def _tree_block(block: AttentionBlock, device: torch.device) -> TreeBlock:
    """A query may look at its own place in the row and before; never at padding on the right."""
    keys_BM = torch.tensor(block.keys_BM, device=device)
    mask_BQM = None
    if not block.whole:
        places_BQ = torch.tensor(block.places_BQ, device=device)
        columns_M = torch.arange(keys_BM.shape[1], device=device)
        mask_BQM = (columns_M <= places_BQ[..., None])[:, None]
    queries_BQ = torch.tensor(block.queries_BQ, device=device)
    return TreeBlock(keys_BM=keys_BM, queries_BQ=queries_BQ, mask_BQM=mask_BQM)


def register() -> None:
    """Make the implementation known to transformers (may be called again)."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: TreePlan,
    last_plan: TreePlan,
    head_nodes_K: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """``query`` [1, h, U, d], ``key`` and ``value`` [1, h_kv, U, d] -> [1, U, h, d].

    In the last layer ``head_nodes_K`` alone ask, by ``last_plan``; the other nodes' answers are 0.
    ``attention_mask`` is None: transformers makes none for this name.
    """
    if not _is_last(module):
        return _attend(query, key, value, plan, scaling)[None], None
    attended = _attend(query, key, value, last_plan, scaling)
    whole = attended.new_zeros(query.shape[2], *attended.shape[1:])
    return whole.index_copy(0, head_nodes_K, attended)[None], None


def _is_last(module: torch.nn.Module) -> bool:
    num_layers = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    return num_layers is not None and getattr(module, "layer_idx", None) == num_layers - 1


def _attend(
    query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, scaling: float | None
) -> Tensor:
    """[N, h, d]: the answers of the nodes that ask, in order of nodes."""
    attended = [
        torch.nn.functional.scaled_dot_product_attention(
            _to_rows(query, block.queries_BQ),
            _to_rows(key, block.keys_BM),
            _to_rows(value, block.keys_BM),
            attn_mask=block.mask_BQM,
            is_causal=block.mask_BQM is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        .transpose(1, 2)
        .flatten(0, 1)
        for block in plan.blocks
    ]
    return torch.cat(attended).index_select(0, plan.slots_N)


def _to_rows(nodes: Tensor, rows_BM: Tensor) -> Tensor:
    """[1, h, U, d] -> [B, h, M, d]."""
    by_node = nodes[0].transpose(0, 1)  # [U, h, d]
    num_nodes, heads, width = by_node.shape
    copied = by_node.reshape(num_nodes, heads * width).index_select(0, rows_BM.reshape(-1))
    return copied.view(*rows_BM.shape, heads, width).transpose(1, 2)
