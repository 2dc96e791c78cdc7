"""Supervised training of one phase: plain torch, AdamW, cross-entropy on the policy's tokens and,
with a smaller weight, on what it reads.

Data-parallel workers each make their own episodes; gradients and token counts are summed over
them (gloo), so that the loss is the mean over all policy tokens of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.warmstart.batches import Batch
from pipeline.warmstart.config import ScheduleConfig, SupervisedConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Qwen3ForCausalLM

__all__ = ["learning_rate", "losses", "train_phase"]

Log = Callable[[str], None]


def learning_rate(progress: float, phase: ScheduleConfig) -> float:
    """Linear warm-up, then a cosine to ``min_lr``; ``progress`` in [0, 1].

    >>> phase = ScheduleConfig(lr=1.0, min_lr=0.0, warmup=0.1)
    >>> [round(learning_rate(p, phase), 3) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < phase.warmup:
        return phase.lr * progress / phase.warmup
    done = min(1.0, (progress - phase.warmup) / max(1e-9, 1.0 - phase.warmup))
    return phase.min_lr + (phase.lr - phase.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def losses(model: Qwen3ForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (nats) of the tokens to be learnt, and of the environment's text.

    The second is a language model's loss on questions and passages: three times as many tokens
    for a small model to learn reading and copying from.
    """
    import torch

    hidden = model.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
    hidden = hidden.flatten(0, 1)

    def summed(positions: Tensor, tokens: Tensor) -> Tensor:
        logits = model.lm_head(hidden[positions]).float()
        return torch.nn.functional.cross_entropy(logits, tokens, reduction="sum")

    return summed(batch.predicting, batch.targets), summed(batch.reading, batch.read)


class _Total:
    """Sums gradients and counts over the workers in one message."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        import torch

        self.parameters = list(parameters)
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters) + 3)
        views, offset = [], 3
        for parameter in self.parameters:
            views.append(self.flat[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.grad = view

    def zero(self) -> None:
        """Start a step."""
        self.flat.zero_()

    def reduce(self, loss: float, targets: int, tokens: int) -> tuple[float, int, int]:
        """Sum over the workers; afterwards every gradient is that of the sum over
        ``targets``."""
        import torch
        import torch.distributed as dist

        self.flat[:3] = torch.tensor([loss, float(targets), float(tokens)])
        if dist.is_initialized():
            dist.all_reduce(self.flat)
        total_loss, total_targets, total_tokens = self.flat[:3].tolist()
        self.flat[3:] /= total_targets
        return total_loss, int(total_targets), int(total_tokens)


def _optimizer(model: Qwen3ForCausalLM, config: SupervisedConfig) -> torch.optim.AdamW:
    import torch

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(config.betas[0], config.betas[1]),
        fused=True,
    )


def train_phase(
    model: Qwen3ForCausalLM,
    batches: Iterator[Batch],
    phase: ScheduleConfig,
    config: SupervisedConfig,
    *,
    name: str,
    log: Log,
) -> float:
    """Train for ``phase.tokens`` tokens over all workers; returns the last smoothed loss
    (nats a policy token, without that on the environment's text). ``log`` gets a line with rate
    and time left now and then."""
    import torch

    optimizer = _optimizer(model, config)
    total = _Total(list(model.parameters()))
    model.train()
    seen, smooth, started, logged = 0, 0.0, time.monotonic(), 0.0
    while seen < phase.tokens:
        rate = learning_rate(seen / phase.tokens, phase)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        total.zero()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.autocast):
            written, read = losses(model, batch)
        (written + config.reading_weight * read).backward()
        summed, targets, tokens = total.reduce(written.item(), len(batch.targets), batch.num_tokens)
        torch.nn.utils.clip_grad_norm_(total.parameters, config.max_grad_norm)
        optimizer.step()
        mean = summed / targets
        smooth = mean if seen == 0 else 0.97 * smooth + 0.03 * mean
        seen += tokens
        elapsed = time.monotonic() - started
        if elapsed - logged >= config.log_every_s or seen >= phase.tokens:
            logged = elapsed
            log(_progress_line(name, seen, phase.tokens, smooth, elapsed, rate))
    model.eval()
    return smooth


def _progress_line(
    name: str, seen: int, goal: int, loss: float, elapsed: float, rate: float
) -> str:
    left = max(0, goal - seen) * elapsed / max(1, seen)
    return (
        f"{name}: {seen / 1e6:.2f} of {goal / 1e6:.2f} M tokens, loss {loss:.3f}, "
        f"lr {rate:.1e}, {seen / elapsed:,.0f} tokens/s, {left / 60:.1f} min left"
    )
