"""What a run needs on one GPU, from model size and config: arithmetic without a GPU.

    engine   weights + KV cache of a few whole trajectories + workspace
    learner  weights + gradients + optimizer states + activations + logits (+ the reference)

Every constant is named below. The estimate is meant to refuse what cannot work, with a message
that shows the sum; it is not a promise that everything above it works.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import GleanerConfig, LearnerConfig, PolicyConfig, RolloutConfig
from pipeline.errors import UserError

__all__ = ["MemoryNeed", "ModelShape", "check_gpu_memory", "engine_need", "learner_need"]

_GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2, "autocast": 4}
#: Whole trajectories whose KV cache must fit at once; with less, requests only take turns.
_WHOLE_TRAJECTORIES = 8
#: CUDA context, kernels' workspace and sampling buffers of a process, GiB.
_WORKSPACE_GIB = 0.8
#: fp32 AdamW: two moments; mixed precision adds fp32 master weights and fp32 gradient sums.
_MOMENT_BYTES, _MASTER_BYTES, _SUM_BYTES = 8, 4, 4
#: Bytes a token and hidden unit inside one layer (Korthikanti et al. 2022, eq. 2, without the
#: attention matrix, which fused kernels do not store).
_LAYER_BYTES = 34
#: Share of a micro-batch's tokens that the policy sampled: only they have a row of logits.
_TRAINED_SHARE = 0.5
#: A row of logits is held in bf16 and fp32, as probabilities, and as two gradients.
_LOGIT_BYTES = 2 + 4 + 4 + 4 + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The dimensions of a dense decoder (Qwen3, Llama and their like)."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def num_parameters(self) -> int:
        """Weights of all matrices (norms and biases are too small to matter).

        >>> round(QWEN3_1_7B.num_parameters / 1e9, 2), round(QWEN3_8B.num_parameters / 1e9, 2)
        (1.72, 8.19)
        """
        attention = self.hidden * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.num_layers * layer + embeddings

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache holds for one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From a Hugging Face ``config.json``. Raises KeyError for unknown key names."""
        heads = int(config["num_attention_heads"])
        return cls(
            num_layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )


QWEN3_1_7B = ModelShape(
    num_layers=28,
    hidden=2048,
    intermediate=6144,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    vocabulary=151936,
    tied=True,
)
QWEN3_8B = ModelShape(
    num_layers=36,
    hidden=4096,
    intermediate=12288,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocabulary=151936,
    tied=False,
)
#: Models of the shipped profiles, so that a profile is checked before anything is downloaded.
_KNOWN = {"Qwen/Qwen3-1.7B": QWEN3_1_7B, "Qwen/Qwen3-8B": QWEN3_8B}


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Named parts in GiB, and their sum."""

    parts: Mapping[str, float]

    @property
    def total_gib(self) -> float:
        """The sum."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        terms = " + ".join(f"{name} {gib:.1f}" for name, gib in self.parts.items())
        return f"{terms} = {self.total_gib:.1f} GiB"


def engine_need(shape: ModelShape, policy: PolicyConfig, rollout: RolloutConfig) -> MemoryNeed:
    """What one engine needs on each of its GPUs.

    >>> print(engine_need(QWEN3_1_7B, PolicyConfig(dtype="bfloat16", max_model_len=4096),
    ...                   RolloutConfig(num_gpus=0.5)))
    engine weights 3.2 + KV cache 3.5 + engine workspace 0.8 = 7.5 GiB
    """
    size = _BYTES[policy.dtype] / rollout.tensor_parallel_size
    kv_tokens = policy.max_model_len * min(_WHOLE_TRAJECTORIES, rollout.max_num_seqs)
    return MemoryNeed(
        {
            "engine weights": shape.num_parameters * size / _GIB,
            "KV cache": shape.kv_values_per_token * kv_tokens * size / _GIB,
            "engine workspace": _WORKSPACE_GIB,
        }
    )


def learner_need(shape: ModelShape, learner: LearnerConfig, *, with_reference: bool) -> MemoryNeed:
    """What one learner rank needs on its GPU (ZeRO divides by the number of ranks).

    >>> print(learner_need(QWEN3_1_7B, LearnerConfig(dtype="bfloat16", offload_optimizer=True,
    ...     gradient_checkpointing=True, tokens_per_micro_batch=4096), with_reference=False))
    weights 3.2 + gradients 3.2 + activations 0.7 + logits 4.6 + learner workspace 0.8 = 12.5 GiB
    """
    size = _BYTES[learner.dtype]
    ranks, stage = learner.num_actors, learner.zero_stage
    # an adapter of a layer of d x d has 2 r d weights; the narrowest layers have half of d
    trained = min(1.0, 4 * learner.lora_rank / shape.hidden) if learner.lora_rank else 1.0
    weights = shape.num_parameters * size / _GIB
    state_bytes = _MOMENT_BYTES + (_MASTER_BYTES if size == 2 else 0)
    shard = trained * shape.num_parameters / _GIB / (ranks if stage >= 1 else 1)
    on_gpu = 0 if learner.offload_optimizer else 1
    largest_layer = shape.vocabulary * shape.hidden * size / _GIB
    parts = {
        "weights": weights / ranks + largest_layer if stage == 3 else weights,
        "gradients": trained * weights / (ranks if stage >= 2 else 1),
        "gradient sums": shard * _SUM_BYTES * on_gpu if size == 2 else 0.0,
        "optimizer": shard * state_bytes * on_gpu,
        "reference": weights if with_reference and not learner.lora_rank else 0.0,
        "activations": _activations_gib(shape, learner),
        "logits": learner.tokens_per_micro_batch
        * _TRAINED_SHARE
        * shape.vocabulary
        * _LOGIT_BYTES
        / _GIB,
        "learner workspace": _WORKSPACE_GIB,
    }
    return MemoryNeed({name: gib for name, gib in parts.items() if gib})


def _activations_gib(shape: ModelShape, learner: LearnerConfig) -> float:
    """One layer's insides and each layer's input; without checkpointing every layer's insides."""
    unit = learner.tokens_per_micro_batch * shape.hidden / _GIB
    inputs = 2 * shape.num_layers * unit
    if learner.gradient_checkpointing:
        return inputs + _LAYER_BYTES * unit
    return _LAYER_BYTES * shape.num_layers * unit


def check_gpu_memory(config: GleanerConfig) -> None:
    """Raise UserError where ``cluster.gpu_memory_gib`` is less than the profile needs.

    On a shared GPU vLLM takes ``rollout.gpu_memory_utilization`` of the device whatever it
    needs: engine and learner must each fit in their part.
    """
    shape = _shape_of(config.policy.path) if config.rollout.num_gpus else None
    if shape is None:
        return
    engine = engine_need(shape, config.policy, config.rollout)
    learner = learner_need(shape, config.learner, with_reference=config.algorithm.kl_coef > 0)
    there, share = config.cluster.gpu_memory_gib, config.rollout.gpu_memory_utilization
    _require("rollout", engine, there * share, f"rollout.gpu_memory_utilization={share:g} of it")
    if not config.learner.num_gpus:
        return
    shared = config.rollout.num_gpus < 1 and config.learner.num_gpus < 1
    rest = there * (1 - share) if shared else there
    _require("learner", learner, rest, "what the engine leaves" if shared else "all of it")


def _require(section: str, need: MemoryNeed, there_gib: float, which: str) -> None:
    if need.total_gib > there_gib:
        raise UserError(
            f"cluster.gpu_memory_gib is too small for the {section}: it needs {need}, and has "
            f"{there_gib:.1f} GiB ({which}). Take a larger GPU (then raise "
            "cluster.gpu_memory_gib) or lower policy.max_model_len, "
            "learner.tokens_per_micro_batch, or set learner.offload_optimizer=true"
        )


def _shape_of(path: str) -> ModelShape | None:
    """The model's dimensions, None where they are not known before it is downloaded."""
    if path in _KNOWN:
        return _KNOWN[path]
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    try:
        return ModelShape.from_config(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError):
        return None
