"""The engine's side of a weight update: vLLM weight-transfer engines that prove what arrived.

vLLM's own API (``WeightTransferEngineFactory``) carries the weights on every device: its CUDA
IPC and NCCL engines are used as they are, and the object store gets the one it lacks. Each is
wrapped so that every tensor handed to the model is hashed on its way.

The classes derive from vLLM's, so they are made in `register_receivers`, when vLLM is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors.weight_digest import WeightDigest

__all__ = ["BACKENDS", "register_receivers", "repack_tied_head"]

# Transport of ``actors.weight_sync`` -> name of the receiver in vLLM's registry.
BACKENDS = {
    "object_store": "gleaner_object_store",
    "cuda_ipc": "gleaner_cuda_ipc",
    "nccl": "gleaner_nccl",
}


class _Tee:
    """A model whose ``load_weights`` hashes every tensor before the real model loads it."""

    def __init__(self, model: Any, digest: WeightDigest) -> None:
        self._model = model
        self._digest = digest

    def load_weights(self, weights: Iterable[tuple[str, Any]]) -> Any:
        return self._model.load_weights(self._hashed(weights))

    def _hashed(self, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, tensor in weights:
            self._digest.add(name, tensor)
            yield name, tensor


class _Proving:
    """Mixin over a vLLM weight-transfer engine: the digest of each update's tensors."""

    model: Any
    received: WeightDigest

    def start_weight_update(self) -> None:
        self.received = WeightDigest()
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _Tee(model, self.received)
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model


@dataclass
class _Nothing:
    """The object store needs no rendezvous."""


@dataclass
class _Tensors:
    """One update: Hugging Face names to read-only numpy arrays in Ray's shared memory."""

    tensors: Mapping[str, Any]


def _object_store_engine(base: type) -> type:
    """vLLM's missing CPU engine: tensors come as numpy arrays mapped from shared memory.

    An update is loaded into a spare model where there is one (`open_spare`): the engine steps on
    meanwhile, and `take_spare` puts it to use.
    """

    class ObjectStoreWeightTransferEngine(base):  # type: ignore[misc]
        init_info_cls = _Nothing
        update_info_cls = _Tensors
        spare: Any = None  # a second model, or None: updates go into the one that computes
        _is_loaded = False  # in this update

        def init_transfer_engine(self, init_info: _Nothing) -> None:
            """Nothing to open."""

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            self._is_loaded = False
            if self.spare is not None:
                self.set_weight_update_target(self.spare, self.model_config)
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            """As in the base class, but there is no accelerator to wait for. One update is whole,
            so it is finished here."""
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            if self._is_loaded:
                raise ValueError("an update through the object store comes in one piece")
            self.receive_weights(self.parse_update_info(update_info))
            self._is_loaded = True
            finalize_layerwise_reload(self.model, self.model_config)
            repack_tied_head(self.model)

        def receive_weights(self, update_info: _Tensors) -> None:
            self.model.load_weights(_as_torch(update_info.tensors))

        def finish_weight_update(self) -> None:
            """Nothing is left to do."""

        def shutdown(self) -> None:
            """Nothing to release."""

    return ObjectStoreWeightTransferEngine


def _as_torch(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Torch views of read-only arrays (they are only copied from, hence the silence)."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for name, array in tensors.items():
            yield name, torch.from_numpy(array)


def repack_tied_head(model: Any) -> None:
    """Pack a tied output head again.

    vLLM's CPU build keeps its own packed copy of a tied head. A reload does not touch it, because
    no tensor of that name arrives: without this, the head would silently stay at its old values.
    """
    head = getattr(model, "lm_head", None)
    if getattr(model.config, "tie_word_embeddings", False) and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def register_receivers() -> None:
    """Make the receivers known to vLLM; a second call does nothing.

    Also the entry point of group ``vllm.general_plugins``, by which vLLM calls it in every
    worker process that it starts itself (tensor parallelism).
    """
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Factory

    if BACKENDS["object_store"] in Factory._registry:
        return

    def proving(name: str, engine: type) -> None:
        Factory.register_engine(BACKENDS[name], type(f"Proving{name}", (_Proving, engine), {}))

    proving("object_store", _object_store_engine(WeightTransferEngine))
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        proving("cuda_ipc", IPCWeightTransferEngine)
        proving("nccl", NCCLWeightTransferEngine)
