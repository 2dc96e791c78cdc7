"""What the learner must know of an algorithm beside its samples: numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Clip bounds of the surrogate and the coefficient of the KL term.

    With ``kl_coef == 0`` no reference policy is loaded at all.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
