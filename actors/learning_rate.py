"""The learning rate of each train step."""

from __future__ import annotations

import math

from pipeline.config import LearnerConfig

__all__ = ["learning_rate"]


def learning_rate(config: LearnerConfig, step: int, total_steps: int) -> float:
    """Rate of the 0-based train step ``step``: linear warm-up, then the schedule.

    ``linear`` and ``cosine`` fall from ``lr`` to 0 at ``total_steps``; the mini-batches of one
    train step share its rate.

    >>> config = LearnerConfig(lr=1.0, warmup_steps=2, schedule="linear")
    >>> [learning_rate(config, step, 6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(total_steps - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / span, 1.0)
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1.0 - done)
        case "cosine":
            return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    raise ValueError(f"unknown schedule {config.schedule!r}")
