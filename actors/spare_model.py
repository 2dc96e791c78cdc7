"""A second copy of an engine's model on the CPU, which takes new weights while the first computes.

Loading and packing weights takes tens of milliseconds, putting the spare model to use takes one:
that alone happens between two steps, and the model that was in use is the next spare. The functions
run inside vLLM's worker (``collective_rpc``). On GPUs, where memory is dear, there is no spare.

What the loading thread and the stepping thread share: no module and no tensor (`open_spare` looks
for that); vLLM's global "current config", which no step reads; and the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["open_spare", "take_spare"]


def open_spare(worker: Any) -> bool:
    """Load a spare model; False where there can be none: on a GPU, with compiled models, and where
    layers that vLLM finds by name are anything but plain attention. Between two steps only: every
    such layer is noted when it is made, and those of the model in use must be there again."""
    from vllm.config import CompilationMode, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
    from vllm.model_executor.model_loader import get_model

    config, receiver = worker.vllm_config, worker.weight_transfer_engine
    layers = config.compilation_config.static_forward_context
    if (
        worker.device.type != "cpu"
        or config.compilation_config.mode != CompilationMode.NONE
        or not hasattr(receiver, "spare")
        or not all(map(_is_plain_attention, layers.values()))
    ):
        return False
    with _emptied(layers), _emptied(_ROPE_DICT), set_current_vllm_config(config):
        spare = get_model(vllm_config=config)
    if set(spare.modules()) & set(worker.model_runner.model.modules()):
        return False  # a load into one would change the other
    receiver.spare = spare
    return True


def take_spare(worker: Any) -> None:
    """Compute with the spare model from now on. Attention layers, which hold the KV cache and no
    weights, go over to it."""
    receiver, runner = worker.weight_transfer_engine, worker.model_runner
    used, spare = runner.model, receiver.spare
    for (parent, name), (other, _) in zip(_attention(used), _attention(spare), strict=True):
        mine, theirs = parent._modules[name], other._modules[name]
        parent._modules[name], other._modules[name] = theirs, mine
    runner.model, receiver.spare = spare, used
    receiver._default_model = receiver.model = spare


def _is_plain_attention(layer: Any) -> bool:
    """Whether it holds no weights, so that it can go over from one model to the other."""
    from vllm.model_executor.layers.attention import Attention

    has_sinks = getattr(getattr(layer, "impl", None), "sinks", None) is not None
    has_weights = next(layer.parameters(), None) is not None
    return type(layer) is Attention and not has_sinks and not has_weights


@contextmanager
def _emptied(noted: dict[Any, Any]) -> Iterator[None]:
    """Inside, nothing is noted; afterwards, what was before."""
    before = dict(noted)
    noted.clear()
    try:
        yield
    finally:
        noted.clear()
        noted.update(before)


def _attention(model: Any) -> Iterator[tuple[Any, str]]:
    """Where the attention layers are: parent and name."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    for parent in model.modules():
        for name, child in parent._modules.items():
            if isinstance(child, AttentionLayerBase):
                yield parent, name
