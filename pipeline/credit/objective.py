"""What the learner must know of an algorithm beside its samples: numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Objective", "PolicyLoss"]

PolicyLoss = Literal["ppo_clip", "nll"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The token loss, its clip bounds and the coefficient of the KL term.

    ``nll`` is supervised: no ratio, no clipping. With ``kl_coef == 0`` no reference policy is
    loaded at all.
    """

    loss: PolicyLoss = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
