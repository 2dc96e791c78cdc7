"""The structured initialisation: an induction head wired into a Qwen3 model before training.

A search agent of this size has to *copy* names out of passages. From a plain initialisation
nothing is copied after minutes of training; wired like this, the model repeats random tokens
before any training, and learning starts from there. Two attention layers work together
(Olsson et al. 2022, "In-context Learning and Induction Heads"):

1. *Previous-token head* (layer 0, head 0). Queries and keys are made from a constant that every
   embedding carries in dimension 0. The query is that constant turned back by one position on
   the three fastest rotary frequencies, so it matches best at distance one. The value is a
   projection ``A`` of the token there, written back through ``B``: afterwards the residual
   stream holds, in a subspace of its own, "the token before me".
2. *Induction heads* (layer 1, all heads). On the slow rotary frequencies, where position hardly
   matters, the query is ``A`` of the current token and the key ``B`` of the stream: a position
   matches where the token before it equals the current token. Its token is copied through an
   orthonormal projection ``C`` and its transpose, and the tied head predicts it.

Everything else starts small, so that it does not drown the copied signal. The shipped policy is
initialised so, and its model card says it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.warmstart.model import rope_theta

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Qwen3ForCausalLM
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

__all__ = ["InductionConfig", "copy_accuracy", "wire_induction_heads"]


@dataclass(frozen=True)
class InductionConfig:
    """Scales of the wiring (found by trial: copy accuracy before and loss after training)."""

    embedding_std: float = 0.05
    constant: float = 0.5  # dimension 0, as a share of an embedding's typical norm
    fast_frequencies: int = 3  # rotary frequencies that tell "one back" from the rest
    slow_below: float = 1.5e-3  # rotary frequency (rad/token) under which position is ignored
    previous_gain: float = 2.0  # query norm of layer 0: sharpness of "the token before"
    previous_write: float = 0.16
    match_gain: float = 2.0  # query norm of layer 1: sharpness of the match
    copy_write: float = 0.24
    residual_scale: float = 0.1  # factor on all other output and down projections
    final_norm: float = 0.4  # starts with soft predictions


def _orthonormal_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """``[rows, columns]`` with orthonormal rows that do not read the constant in column 0."""
    import torch

    square, _ = torch.linalg.qr(torch.randn(columns - 1, rows, generator=generator))
    return torch.cat((torch.zeros(rows, 1), square.T), dim=1)


def _rotary_frequencies(head_dim: int, theta: float) -> Tensor:
    """Radians a token of each rotary pair ``(i, i + head_dim / 2)``, fastest first."""
    import torch

    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _slow_dims(frequencies: Tensor, slow_below: float) -> list[int]:
    half = len(frequencies)
    slow = [i for i in range(half) if frequencies[i] < slow_below]
    return slow + [i + half for i in slow]


def _wire_previous_token_head(
    attention: Qwen3Attention, frequencies: Tensor, read: Tensor, write: Tensor, c: InductionConfig
) -> None:
    head_dim, half, rank = attention.head_dim, len(frequencies), len(read)
    attention.q_norm.weight.fill_(c.previous_gain)
    attention.q_proj.weight[:head_dim] *= 0.3
    attention.k_proj.weight[:head_dim] *= 0.3
    for i in range(c.fast_frequencies):
        angle = -float(frequencies[i])  # one position back
        attention.k_proj.weight[i, 0] += 1.0
        attention.q_proj.weight[i, 0] += math.cos(angle)
        attention.q_proj.weight[i + half, 0] += math.sin(angle)
    attention.v_proj.weight[:rank] = read
    attention.o_proj.weight[:, :rank] = write.T * c.previous_write


def _wire_induction_layer(
    attention: Qwen3Attention,
    slow: list[int],
    read: Tensor,
    write: Tensor,
    generator: torch.Generator,
    c: InductionConfig,
) -> None:
    import torch

    head_dim, group = attention.head_dim, attention.num_key_value_groups
    num_kv_heads = attention.k_proj.weight.shape[0] // head_dim
    hidden = attention.k_proj.weight.shape[1]
    attention.q_norm.weight.fill_(c.match_gain)
    attention.q_proj.weight *= 0.1
    attention.k_proj.weight *= 0.1
    slow_index = torch.tensor(slow)
    for kv_head in range(num_kv_heads):
        attention.k_proj.weight[kv_head * head_dim + slow_index] += write
        copied = _orthonormal_rows(head_dim, hidden, generator)
        attention.v_proj.weight[kv_head * head_dim : (kv_head + 1) * head_dim] = copied
        for head in range(kv_head * group, (kv_head + 1) * group):
            attention.q_proj.weight[head * head_dim + slow_index] += read
            columns = slice(head * head_dim, (head + 1) * head_dim)
            attention.o_proj.weight[:, columns] = copied.T * (c.copy_write / group)


def wire_induction_heads(
    model: Qwen3ForCausalLM, *, seed: int, config: InductionConfig | None = None
) -> int:
    """Wire the two layers in place; returns the rank of the "token before me" subspace.

    Raises:
        ValueError: for a model with fewer than two layers, or without slow rotary frequencies.
    """
    import torch

    c = config or InductionConfig()
    base = model.model
    if len(base.layers) < 2:
        raise ValueError("an induction head needs two layers")
    hidden = model.config.hidden_size
    first, second = base.layers[0].self_attn, base.layers[1].self_attn
    frequencies = _rotary_frequencies(first.head_dim, rope_theta(model))
    slow = _slow_dims(frequencies, c.slow_below)
    if not slow:
        raise ValueError("no rotary frequency is slow enough to ignore position: raise rope_theta")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        embedding = base.embed_tokens.weight
        embedding.copy_(torch.randn(embedding.shape, generator=generator) * c.embedding_std)
        embedding[:, 0] = c.embedding_std * math.sqrt(hidden) * c.constant
        for layer in base.layers:
            layer.self_attn.o_proj.weight *= c.residual_scale
            layer.mlp.down_proj.weight *= c.residual_scale
        base.norm.weight.fill_(c.final_norm)
        read = _orthonormal_rows(len(slow), hidden, generator)
        write = _orthonormal_rows(len(slow), hidden, generator)
        _wire_previous_token_head(first, frequencies, read, write, c)
        _wire_induction_layer(second, slow, read, write, generator, c)
    return len(slow)


def copy_accuracy(
    model: Qwen3ForCausalLM, *, length: int = 64, gap: int = 20, batch: int = 8, seed: int = 0
) -> float:
    """Share of random tokens predicted right at their second occurrence.

    The sequence is ``x, noise, x`` with ``x`` of ``length`` and the noise of ``gap`` random tokens;
    the first token of the second ``x`` cannot be known and is not counted.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    vocab = model.config.vocab_size
    x = torch.randint(0, vocab, (batch, length), generator=generator)
    noise = torch.randint(0, vocab, (batch, gap), generator=generator)
    ids = torch.cat((x, noise, x), dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    predicted = logits[:, length + gap : -1].argmax(-1)
    return float((predicted == x[:, 1:]).float().mean())
