"""An algorithm as a composition: advantages, round weights, aggregation, objective.

Source: CW-GRPO (Wang et al., arXiv 2604.14267). ``alpha = 0`` or ``credit = uniform`` is GRPO.

Legend: ``_G`` one value a trajectory of a group, ``_S`` a search round, ``_T`` a round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import AlgorithmConfig
from pipeline.credit.advantage import group_advantages
from pipeline.credit.aggregate import aggregate
from pipeline.credit.assign import make_sample, round_advantages
from pipeline.credit.contribution import contribution_weights, contributions
from pipeline.credit.metrics import credit_metrics
from pipeline.credit.objective import Objective
from pipeline.credit.result import CreditResult, TrajectoryCredit
from pipeline.errors import UserError
from pipeline.types import Group, Trajectory, VerdictNeed

__all__ = ["Algorithm", "CreditResult", "TrajectoryCredit", "build_algorithm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Credit assignment of one configuration. Make it with ``build_algorithm``."""

    config: AlgorithmConfig
    verdict_need: VerdictNeed

    @property
    def objective(self) -> Objective:
        """What the learner needs: token loss, clip bounds and KL coefficient."""
        return Objective(
            loss=self.config.loss,  # type: ignore[arg-type]  # checked by build_algorithm
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            kl_coef=self.config.kl_coef,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether samples must carry the frozen reference's log-probabilities."""
        return self.config.kl_coef > 0

    def to_judge(self, group: Group) -> list[int]:
        """Indices into ``group.trajectories`` of those whose search rounds need verdicts."""
        if self.verdict_need is VerdictNeed.NONE:
            return []
        advantages_G = self._advantages(group)
        return [
            i
            for i, (trajectory, advantage) in enumerate(
                zip(group.trajectories, advantages_G, strict=True)
            )
            if trajectory.search_rounds and is_success(trajectory, float(advantage))
        ]

    def credit(self, groups: Sequence[Group]) -> CreditResult:
        """Samples and normaliser of one batch, and the credit of each trajectory.

        Trajectories whose gradient is zero (advantage 0 and no KL term) are not among the
        samples, but count in the normaliser: it is taken over all trajectories of the batch.
        """
        trajectories = [t for g in groups for t in g.trajectories]
        credits = [c for g in groups for c in self._credit_group(g)]
        weights, normaliser = aggregate(
            [t.num_policy_tokens for t in trajectories],
            self.config.aggregation,  # type: ignore[arg-type]  # checked by build_algorithm
            constant=self.config.constant_normaliser,
        )
        samples = [
            make_sample(trajectory, credit.round_advantages, float(weight))
            for trajectory, credit, weight in zip(trajectories, credits, weights, strict=True)
            if trajectory.num_policy_tokens and (credit.advantage != 0 or self.needs_reference)
        ]
        return CreditResult(
            samples=samples,
            normaliser=normaliser,
            trajectories=credits,
            metrics=credit_metrics(trajectories, credits, judged=self._judged),
        )

    @property
    def _judged(self) -> bool:
        return self.verdict_need is not VerdictNeed.NONE

    def _advantages(self, group: Group) -> np.ndarray:
        return group_advantages(group.rewards, norm_by_std=self.config.norm_by_std)

    def _credit_group(self, group: Group) -> list[TrajectoryCredit]:
        pairs = zip(group.trajectories, self._advantages(group), strict=True)
        return [self._credit_trajectory(t, float(advantage)) for t, advantage in pairs]

    def _credit_trajectory(self, trajectory: Trajectory, advantage: float) -> TrajectoryCredit:
        p_S = contributions([r.verdict for r in trajectory.search_rounds])
        success = is_success(trajectory, advantage)
        weights_S = np.ones(len(p_S))
        if success and self._judged:
            weights_S = contribution_weights(
                p_S,
                alpha=self.config.alpha,
                no_contribution=self.config.no_contribution,  # type: ignore[arg-type]
                failed_verdict=self.config.failed_verdict,  # type: ignore[arg-type]
            )
        return TrajectoryCredit(
            group_id=trajectory.group_id,
            sample_id=trajectory.sample_id,
            advantage=advantage,
            success=success,
            contributions=p_S,
            weights=weights_S,
            round_advantages=round_advantages(advantage, weights_S),
        )


def is_success(trajectory: Trajectory, advantage: float) -> bool:
    """Outcome reward 1 and a positive advantage: shaping never makes a wrong answer one."""
    return trajectory.correct and advantage > 0


def build_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm that a configuration names. Raises UserError for values it cannot take."""
    _require(config.credit in ("contribution", "uniform"), "credit", config.credit)
    _require(config.loss in ("ppo_clip", "nll"), "loss", config.loss)
    for key in ("no_contribution", "failed_verdict"):
        _require(getattr(config, key) in ("uniform", "zero"), key, getattr(config, key))
    _require(
        config.aggregation in ("token_mean", "sequence_mean", "constant"),
        "aggregation",
        config.aggregation,
    )
    _require(config.alpha >= 0, "alpha", config.alpha, "0 or more, .inf for the limit")
    _require(0 <= config.clip_low < 1, "clip_low", config.clip_low, "in [0, 1)")
    _require(config.clip_high >= 0, "clip_high", config.clip_high, "0 or more")
    _require(
        config.kl_coef >= 0 and math.isfinite(config.kl_coef),
        "kl_coef",
        config.kl_coef,
        "0 or more",
    )
    if config.aggregation == "constant":
        value = config.constant_normaliser
        _require(value > 0, "constant_normaliser", value, "more than 0 with aggregation=constant")
    weighted = config.credit == "contribution" and config.alpha > 0
    need = VerdictNeed.WINNERS if weighted else VerdictNeed.NONE
    return Algorithm(config=config, verdict_need=need)


def _require(holds: bool, key: str, value: Any, allowed: str = "one of its named values") -> None:
    if not holds:
        raise UserError(f"algorithm.{key}={value!r} must be {allowed} (docs/algorithms.md)")
