"""The small policy's architecture: a Qwen3 model of 3 to 15 M parameters, built from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

    from pipeline.warmstart.config import ModelConfig

__all__ = ["build_model", "count_parameters", "rope_theta"]


def build_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Qwen3ForCausalLM:
    """An untrained fp32 ``Qwen3ForCausalLM`` with tied embeddings, random for ``seed``.

    Linear weights have standard deviation ``1 / sqrt(fan_in)``; what writes into the residual
    stream (output and down projections) is divided by ``sqrt(2 * layers)``.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    qwen = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        attention_bias=False,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM._from_config(qwen, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    depth_scale = (2 * config.num_layers) ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            std = 0.02 if "embed_tokens" in name else weight.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= depth_scale
            torch.nn.init.normal_(weight, std=std)
    return model


def rope_theta(model: Qwen3ForCausalLM) -> float:
    """Base of the rotary position embedding."""
    return float(model.config.rope_parameters["rope_theta"])


def count_parameters(model: Qwen3ForCausalLM) -> int:
    """Parameters, the tied head counted once."""
    return sum(p.numel() for p in model.parameters())
