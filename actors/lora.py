"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) by the peft library.

Only the adapters are trained. What is published, proven and exported are whole weights under the
base model's own names, the adapters merged in: engines and files know nothing of LoRA. With the
adapters switched off the model is the frozen reference, which costs no second copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.config import LearnerConfig

__all__ = ["MergedWeight", "adapters_off", "add_adapters", "merged_weights", "with_adapter"]

#: A weight: the base model's name for it, the parameters it takes, its layer if that is adapted.
MergedWeight = tuple[str, list[nn.Parameter], nn.Module | None]

_NAME = "default"  # peft's name for the one adapter of a layer


def add_adapters(model: Any, config: LearnerConfig) -> None:
    """Give every linear layer but the head an adapter, in place; nothing else stays trainable."""
    import peft

    adapter = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
    )
    peft.inject_adapter_in_model(adapter, model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model alone, inside the block."""
    layers = [m for m in model.modules() if _has_adapter(m)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def merged_weights(module: nn.Module) -> Iterator[MergedWeight]:
    """Each weight once: the first of its parameters, and ``layer.get_delta_weight("default")`` on
    top where there is a layer; all its parameters must be whole then (ZeRO 3 gathers them)."""
    layers = {
        id(layer.base_layer.weight): layer for layer in module.modules() if _has_adapter(layer)
    }
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            continue
        layer = layers.get(id(parameter))
        adapter = [] if layer is None else [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
        yield name.replace(".base_layer.", "."), [parameter, *adapter], layer


def with_adapter(parameter: torch.Tensor, layer: nn.Module | None) -> torch.Tensor:
    """The weight that the layer really applies, detached; a merged one in float32.

    A bfloat16 engine rounds it: changes below half a unit in a weight's last place are lost there
    until they have grown (docs/gpu.md).
    """
    weight = parameter.detach()
    if layer is None:
        return weight
    return weight.float() + layer.get_delta_weight(_NAME).detach().float()


def _has_adapter(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")
