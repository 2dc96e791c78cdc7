"""Loads a policy from a Hugging Face directory or hub name, and writes one.

transformers is imported when something is loaded. Only safetensors weights are read, and no
code that comes with a model is run.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import sync_tree
from pipeline.errors import UserError
from pipeline.model_directory import check_model_directory, from_hub, looks_like_a_hub_name

if TYPE_CHECKING:
    import torch

__all__ = ["load_policy", "policy_directory", "save_policy"]

_COPIED = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
)
_SCALED_LOGITS = {"final_logit_softcapping": None, "logits_scaling": 1, "logit_scale": None}


def policy_directory(path: str) -> Path:
    """The directory with the model's files; a hub name is fetched first.

    Raises UserError where there is no such directory or hub model, or where it lacks its
    config, weights or tokenizer.
    """
    if looks_like_a_hub_name(path) and not Path(path).exists():
        from huggingface_hub import snapshot_download

        files = ["*.json", "*.safetensors", *_COPIED]
        directory = from_hub(path, lambda name: Path(snapshot_download(name, allow_patterns=files)))
    else:
        directory = Path(path)
    check_model_directory(directory, path)
    return directory


def load_policy(directory: Path, *, dtype: torch.dtype, attention: str) -> Any:
    """The causal LM in ``directory`` with the given weight type and attention implementation.

    Dropout is off: the learner must compute the distribution that was sampled. Raises UserError
    for an architecture whose attention or head this learner does not reproduce.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        _check_supported(config, directory)
        config.attention_dropout = 0.0
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the policy in {directory} cannot be loaded: {error}") from None
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    return model


def _check_supported(config: Any, directory: Path) -> None:
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"}:
        raise UserError(
            f"the policy in {directory} has {', '.join(sorted(layers))} layers; the learner "
            "needs full causal attention in every layer (Llama, Qwen2, Qwen3, SmolLM2 ...)"
        )
    for key, neutral in _SCALED_LOGITS.items():
        if getattr(config, key, neutral) != neutral:
            raise UserError(
                f"the policy in {directory} changes its logits ({key}), which the learner "
                "does not reproduce; choose another architecture"
            )


def save_policy(
    model: Any, state: Mapping[str, torch.Tensor], source: Path, directory: Path
) -> None:
    """Write a plain Hugging Face directory, whole or not at all.

    ``state`` are the weights under the names of ``model.state_dict()`` (tied ones once); the
    tokenizer's files are copied from ``source``. An existing ``directory`` is replaced.
    """
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        model.save_pretrained(fresh, state_dict=dict(state))
        for pattern in _COPIED:
            for file in source.glob(pattern):
                shutil.copyfile(file, fresh / file.name)
        sync_tree(fresh)
        _swap(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, directory: Path) -> None:
    """Put ``fresh`` in the place of ``directory``."""
    if not directory.exists():
        os.rename(fresh, directory)
        return
    old = fresh.with_suffix(".old")
    os.rename(directory, old)
    os.rename(fresh, directory)
    shutil.rmtree(old)
