"""The last layer computes queries, attention, projection and MLP where the head reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors import tree_attention
from actors.policy_scorer import PolicyScorer, scorer_input
from pipeline.batch import make_rank_batches
from tests.support.learner_cases import credit


def test_queries_projection_mlp_and_attention_of_the_last_layer_see_head_nodes_only(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.policy_model import load_policy

    tree_attention.register()
    model = load_policy(tiny_policy, dtype=torch.float32, attention=tree_attention.NAME)
    scorer = PolicyScorer(model)
    (micro_batch,) = make_rank_batches(credit().samples, 1.0, 1, 4096)[0].micro_batches
    num_heads_read, num_nodes = len(micro_batch.head_nodes_K), micro_batch.num_nodes
    assert num_heads_read < num_nodes
    seen: dict[str, int] = {}
    first, last = model.base_model.layers[0], model.base_model.layers[-1]
    for name, module in (
        ("first q", first.self_attn.q_proj),
        ("first mlp", first.mlp),
        ("q", last.self_attn.q_proj),
        ("k", last.self_attn.k_proj),
        ("o", last.self_attn.o_proj),
        ("mlp", last.mlp),
    ):
        module.register_forward_hook(  # after the scorer's own hook has chosen the nodes
            lambda _, inputs, __, name=name: seen.__setitem__(name, inputs[0].shape[1])
        )
    plans = []
    attend = tree_attention._attend
    monkeypatch.setattr(
        tree_attention, "_attend", lambda *a: (plans.append(len(a[3].slots_N)), attend(*a))[1]
    )
    inputs = scorer_input(micro_batch, torch.device("cpu"))
    scorer(inputs, 1.0)
    assert seen == {
        "first q": num_nodes,
        "first mlp": num_nodes,
        "k": num_nodes,
        "q": num_heads_read,
        "o": num_heads_read,
        "mlp": num_heads_read,
    }
    assert plans == [num_nodes] * (len(model.base_model.layers) - 1) + [num_heads_read]
