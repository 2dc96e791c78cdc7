"""DeepSpeed behind three verbs: accumulate a micro-batch, step, gather the weights.

DeepSpeed divides gradients by accumulation steps and by ranks. Here a batch has one normaliser
of its own, so both are undone explicitly: accumulation is configured as 1 step and its boundary
set by hand (no division), and each loss is multiplied by the number of ranks, which the
averaging all-reduce then takes out. What is clipped and reported is the true gradient's norm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from actors.lora import MergedWeight, merged_weights, with_adapter
from pipeline.config import LearnerConfig
from pipeline.extensions import clear_stale_locks, extensions_directory

__all__ = ["DeepSpeedEngine", "join_ranks"]

T = TypeVar("T")

GATHER_BYTES = 2**28  # of ZeRO 3's weights that are whole at a time
_TAG = "state"  # DeepSpeed writes into a folder of this name


def join_ranks(
    store: torch.distributed.Store,
    rank: int,
    world_size: int,
    config: LearnerConfig,
    address: tuple[str, int],
) -> None:
    """Form the process group (NCCL with GPUs, else gloo) and tell DeepSpeed."""
    host, port = address
    # DeepSpeed's shared-memory reduction names its segments after these.
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cuda" if config.num_gpus > 0 else "cpu",
    )
    # One cache an environment, where the installer built the operator: two environments that
    # share the default one would compile it again at each turn.
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions_directory())
    clear_stale_locks(extensions_directory())
    if host == "127.0.0.1" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not torch.distributed.is_initialized():  # several single ranks may share a process
        torch.distributed.init_process_group(
            "nccl" if config.num_gpus > 0 else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=config.step_timeout_s),
        )
    with _quiet():
        import deepspeed

        deepspeed.init_distributed(verbose=False)


class DeepSpeedEngine:
    """One rank's engine around ``module``, whose parameters are already on their device."""

    def __init__(self, module: nn.Module, config: LearnerConfig, world_size: int) -> None:
        import deepspeed

        self._config, self._world_size = config, world_size
        with _quiet():
            self.engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=_optimizer(module, config),
                config=_deepspeed_config(config, world_size),
            )

    def accumulate(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient; ``loss`` is this rank's, over the batch's normaliser."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self._world_size)

    def begin(self, *, last: bool) -> None:
        """Must come before the forward pass of each micro-batch."""
        self.engine.set_gradient_accumulation_boundary(last)

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear; the gradient's norm before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._plain_norm()
        self.engine.step()
        return self._reported_norm() if norm is None else norm

    def save(self, directory: str, extra: dict[str, Any]) -> None:
        """Write DeepSpeed's checkpoint (weights, optimizer) and ``extra``. All ranks must call it;
        when it returns, every rank's part is written."""
        self.engine.save_checkpoint(directory, tag=_TAG, client_state=extra, save_latest=False)
        torch.distributed.barrier()

    def load(self, directory: str) -> dict[str, Any]:
        """Become what `save` wrote into ``directory``; returns its ``extra``. All ranks must call
        it, as many as wrote it."""
        with _quiet():
            _, extra = self.engine.load_checkpoint(
                directory, tag=_TAG, load_lr_scheduler_states=False
            )
        if extra is None:
            raise FileNotFoundError(f"{directory} holds no checkpoint of DeepSpeed's")
        return extra

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight once, whole, detached, under the base model's own names, adapters merged.

        With ZeRO 3 they are gathered in buckets: a collective, which all ranks must run through,
        with one bucket (or one larger weight) in memory beside the model, twice.
        """
        weights = merged_weights(self.engine.module)
        if self._config.zero_stage < 3:
            for name, parameters, layer in weights:
                yield name.removeprefix("model."), with_adapter(parameters[0], layer)
            return
        for bucket in buckets(weights, size=_gathered_bytes, limit=GATHER_BYTES):
            yield from _gathered(bucket)

    def _plain_norm(self) -> float | None:
        """Without ZeRO the gradients are plain, and DeepSpeed keeps no norm."""
        if self._config.zero_stage:
            return None
        grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _reported_norm(self) -> float:
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)


def buckets(items: Iterable[T], *, size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Neighbours together, as many as fit into ``limit``; a larger one alone.

    >>> list(buckets([3, 4, 2, 9, 1], size=int, limit=7))
    [[3, 4], [2], [9], [1]]
    """
    bucket: list[T] = []
    for item in items:
        if bucket and sum(map(size, bucket)) + size(item) > limit:
            yield bucket
            bucket = []
        bucket.append(item)
    if bucket:
        yield bucket


def _gathered_bytes(weight: MergedWeight) -> int:
    """What ZeRO 3 needs on each rank while the weight is whole."""
    _, parameters, _ = weight
    return sum(p.ds_numel * p.element_size() for p in parameters)


def _gathered(bucket: Sequence[MergedWeight]) -> list[tuple[str, torch.Tensor]]:
    """The whole weights of a bucket, cloned: the originals are freed again."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([p for _, parameters, _ in bucket for p in parameters]):
        return [
            (name.removeprefix("model."), with_adapter(parameters[0], layer).clone())
            for name, parameters, layer in bucket
        ]


def _optimizer(module: nn.Module, config: LearnerConfig) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay)
    first, second = config.betas
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=(first, second), weight_decay=config.weight_decay
    )


def _deepspeed_config(config: LearnerConfig, world_size: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer and config.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
    half = config.dtype == "bfloat16"
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # never divides: the boundary is set by hand
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": half},
        **({"data_types": {"grad_accum_dtype": "fp32"}} if half else {}),
        "steps_per_print": sys.maxsize,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed announces itself at INFO; a run has its own log."""
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(logging.WARNING)
