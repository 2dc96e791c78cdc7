"""Attention over a prefix tree: hidden states are flat nodes, attention sees whole trajectories.

``pipeline.batch`` numbers the distinct prefixes of a micro-batch. Here each node's query, key and
value are copied to every trajectory that passes through it, PyTorch's causal attention runs on
these rows, and one copy of each node's output goes on. Rows are padded on the right, which a
causal mask never looks at: no mask tensor is needed. Registered with transformers under
``NAME``, so that any model with pluggable full attention can use it.

Legend: ``h`` heads, ``d`` head dimension, ``U`` nodes, ``B`` rows, ``M`` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAME", "register"]

NAME = "gleaner_tree"


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
    rows: Sequence[Tensor],
    slots_U: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """``query`` [1, h, U, d], ``key`` and ``value`` [1, h_kv, U, d] -> [1, U, h, d].

    ``rows`` are blocks int64[B, M] of nodes, ``slots_U`` int64[U] a flat place of each node in
    them, end to end. ``attention_mask`` is None: transformers makes none for this name.
    """
    attended = [
        torch.nn.functional.scaled_dot_product_attention(
            _to_rows(query, rows_BM),
            _to_rows(key, rows_BM),
            _to_rows(value, rows_BM),
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        .transpose(1, 2)
        .flatten(0, 1)
        for rows_BM in rows
    ]
    return torch.cat(attended).index_select(0, slots_U)[None], None


def _to_rows(nodes: Tensor, rows_BM: Tensor) -> Tensor:
    """[1, h, U, d] -> [B, h, M, d]."""
    by_node = nodes[0].transpose(0, 1)  # [U, h, d]
    num_nodes, heads, width = by_node.shape
    copied = by_node.reshape(num_nodes, heads * width).index_select(0, rows_BM.reshape(-1))
    return copied.view(*rows_BM.shape, heads, width).transpose(1, 2)
