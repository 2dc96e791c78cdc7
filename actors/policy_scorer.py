"""The policy as the learner runs it: log-probabilities of trained tokens, nothing else.

A vocabulary-sized row of logits is made only for nodes whose next token is trained, never for
question, template or passages.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.tree_attention import TreePlan, tree_plan
from pipeline.batch import MicroBatch

__all__ = ["PolicyScorer", "ScorerInput", "scorer_input"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerInput:
    """A micro-batch's structure as int64 tensors (see ``pipeline.batch.MicroBatch``)."""

    token_ids_U: Tensor
    positions_U: Tensor
    attention: TreePlan
    last_attention: TreePlan
    head_nodes_K: Tensor
    head_index_P: Tensor
    targets_P: Tensor


def scorer_input(micro_batch: MicroBatch, device: torch.device) -> ScorerInput:
    """Move a micro-batch to ``device``."""

    def move(array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=device)

    return ScorerInput(
        token_ids_U=move(micro_batch.token_ids_U),
        positions_U=move(micro_batch.positions_U),
        attention=tree_plan(micro_batch.attention, device),
        last_attention=tree_plan(micro_batch.last_attention, device),
        head_nodes_K=move(micro_batch.head_nodes_K),
        head_index_P=move(micro_batch.head_index_P),
        targets_P=move(micro_batch.targets_P),
    )


class PolicyScorer(nn.Module):
    """Wraps a causal LM so that DeepSpeed sees ONE forward: body, then head where needed.

    ``compute_dtype`` other than None runs the body under autocast to that type; the head and the
    softmax are in float32 in any case.
    """

    def __init__(self, model: Any, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self._compute_dtype = compute_dtype
        self._last_layer = _HeadNodesOnly(model)

    def forward(
        self, inputs: ScorerInput, temperature: float, *, autocast: bool = True
    ) -> tuple[Tensor, Tensor]:
        """``(log-probabilities float32[P], entropies float32[P] in nats, detached)`` of the
        distribution with ``temperature`` applied."""
        self._last_layer.head_nodes_K = inputs.head_nodes_K
        with self._autocast(inputs.token_ids_U.device, autocast):
            hidden_UH = self.model.base_model(
                input_ids=inputs.token_ids_U[None],
                position_ids=inputs.positions_U[None],
                use_cache=False,
                plan=inputs.attention,
                last_plan=inputs.last_attention,
                head_nodes_K=inputs.head_nodes_K,
            ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        hidden_KH = hidden_UH.index_select(0, inputs.head_nodes_K).to(_dtype(head, hidden_UH))
        logits_KV = head(hidden_KH).float() / temperature
        normaliser_K = torch.logsumexp(logits_KV, dim=-1)
        chosen_P = logits_KV[inputs.head_index_P, inputs.targets_P]
        logprobs_P = chosen_P - normaliser_K[inputs.head_index_P]
        return logprobs_P, _entropy(logits_KV, normaliser_K)[inputs.head_index_P]

    def _autocast(self, device: torch.device, wanted: bool) -> Any:
        if self._compute_dtype is None or not wanted:
            return nullcontext()
        return torch.autocast(device.type, self._compute_dtype)


class _HeadNodesOnly:
    """Runs in the last layer only for nodes that the head reads what is of use for them alone.

    Nothing looks at any other node after its keys and values (``actors.tree_attention`` makes no
    answer for them): queries, output projection and MLP leave theirs at 0.
    """

    def __init__(self, model: Any) -> None:
        self.head_nodes_K: Tensor | None = None
        self._num_nodes = 0
        layers = getattr(model.base_model, "layers", None)
        last = layers[-1] if layers is not None else None
        attention = getattr(last, "self_attn", None)
        for module in (
            getattr(attention, "q_proj", None),
            getattr(attention, "o_proj", None),
            getattr(last, "mlp", None),
        ):
            if isinstance(module, nn.Module):
                module.register_forward_pre_hook(self._select)
                module.register_forward_hook(self._spread)

    def _select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.head_nodes_K is not None
        self._num_nodes = inputs[0].shape[1]
        return (inputs[0].index_select(1, self.head_nodes_K), *inputs[1:])

    def _spread(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert self.head_nodes_K is not None
        whole = output.new_zeros(1, self._num_nodes, output.shape[-1])
        return whole.index_copy(1, self.head_nodes_K, output)


def _dtype(head: nn.Module, hidden: Tensor) -> torch.dtype:
    """The head's weight type (a partitioned weight still knows it)."""
    weight = getattr(head, "weight", hidden)
    return weight.dtype


@torch.no_grad()
def _entropy(logits_KV: Tensor, normaliser_K: Tensor) -> Tensor:
    """``-sum p log p = log Z - sum p logit`` of each row."""
    probabilities_KV = torch.exp(logits_KV - normaliser_K[:, None])
    return normaliser_K - (probabilities_KV * logits_KV).sum(-1)
