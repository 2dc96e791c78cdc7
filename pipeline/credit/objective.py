"""What the learner must know of an algorithm beside its samples: names and numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.credit.kl import KlEstimator

__all__ = ["Correction", "CorrectionKind", "CorrectionLevel", "KlPlace", "Objective", "PolicyLoss"]

PolicyLoss = Literal["ppo_clip", "gspo", "cispo", "nll"]
KlPlace = Literal["loss", "reward"]
CorrectionKind = Literal["none", "importance", "truncated", "masked"]
CorrectionLevel = Literal["token", "round", "sequence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Off-policy correction (``pipeline.credit.correction``).

    ``none``: factor 1. ``importance``: the ratio. ``truncated``: the ratio, at most ``high``.
    ``masked``: the ratio between ``low`` and ``high``, 0 outside.

    ``geometric`` takes a unit's ratio as the geometric mean over its tokens instead of their
    product: biased, but it does not vanish or explode with the unit's length.
    """

    kind: CorrectionKind = "none"
    level: CorrectionLevel = "token"
    low: float = 0.5
    high: float = 2.0
    geometric: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The token loss, its clip bounds, the KL term and the off-policy correction.

    ``recompute_proximal``: the ratio's denominator is the learner's policy at the start of the
    train step, not the sampler's log-probabilities.
    """

    loss: PolicyLoss = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    kl_in: KlPlace = "loss"
    kl_estimator: KlEstimator = "k3"
    recompute_proximal: bool = False
    correction: Correction = field(default_factory=Correction)

    @property
    def needs_reference(self) -> bool:
        """With ``kl_coef == 0`` no reference policy is loaded at all."""
        return self.kl_coef > 0

    @property
    def loss_kl_coef(self) -> float:
        """Coefficient of the KL term that the learner adds to the loss."""
        return self.kl_coef if self.kl_in == "loss" else 0.0
