"""What a FlashAttention kernel for packed sequences computes, by PyTorch's attention on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["flash_attn_varlen_func"]


def flash_attn_varlen_func(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Each sequence of queries attends to its own sequence of keys, whose last is its last.

    ``query`` is float[N, heads, d], ``key`` and ``value`` float[K, key heads, d], ``cu_seqlens_q``
    and ``cu_seqlens_k`` int[S + 1] where the sequences begin and end. Returns float[N, heads, d].
    """
    if not causal or window_size != (-1, -1):
        raise ValueError("this stands in for causal attention without a window only")
    bounds = zip(*(b.tolist() for b in (cu_seqlens_q, cu_seqlens_k)), strict=True)
    edges = list(bounds)
    parts = [
        _one(query[q0:q1], key[k0:k1], value[k0:k1], softmax_scale)
        for (q0, k0), (q1, k1) in itertools.pairwise(edges)
    ]
    return torch.cat(parts)


def _one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: Any) -> torch.Tensor:
    mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))  # heads first
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out[0].transpose(0, 1)
