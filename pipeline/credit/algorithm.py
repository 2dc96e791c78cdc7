"""An algorithm as a composition: rewards, advantages, round credit, aggregation, objective.

Source: CW-GRPO (Wang et al., arXiv 2604.14267). ``alpha = 0`` or ``credit = uniform`` is GRPO.
Each step is a pure function of its own file; this one only puts them in order.

Legend: ``_G`` one value a trajectory of a group, ``_S`` a search round, ``_T`` a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import AlgorithmConfig, CorrectionConfig
from pipeline.credit.advantage import advantages, group_advantages
from pipeline.credit.aggregate import aggregate
from pipeline.credit.assign import make_sample, round_advantages
from pipeline.credit.contribution import contributions, round_weights
from pipeline.credit.kl import trajectory_kl
from pipeline.credit.metrics import credit_metrics
from pipeline.credit.objective import Correction, Objective
from pipeline.credit.process import process_advantages
from pipeline.credit.result import CreditResult, TrajectoryCredit
from pipeline.credit.sensitivity import OppositeVerdict, opposite_verdicts
from pipeline.credit.shaping import overlong_penalty
from pipeline.credit.validate import check_algorithm, check_correction
from pipeline.types import Group, Sample, Trajectory, VerdictNeed

__all__ = ["Algorithm", "CreditResult", "TrajectoryCredit", "build_algorithm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Credit assignment of one configuration. Make it with ``build_algorithm``."""

    config: AlgorithmConfig
    objective: Objective
    verdict_need: VerdictNeed

    @property
    def credits_groups_alone(self) -> bool:
        """Whether a finished group has its final credit, whatever else is in the batch."""
        return self.config.scale != "batch" and not self._kl_in_reward

    def has_signal(self, group: Group) -> bool:
        """Whether this group can teach anything; else it gives its slot back at once.

        With a baseline, equal outcome rewards have nothing to compare. Without one
        (``baseline=none``) every group counts.
        """
        return self.config.baseline == "none" or group.has_signal

    def to_judge(self, group: Group) -> list[int]:
        """Indices into ``group.trajectories`` of those whose search rounds need verdicts."""
        if self.verdict_need is VerdictNeed.NONE:
            return []
        searched = [i for i, t in enumerate(group.trajectories) if t.search_rounds]
        if self.verdict_need is VerdictNeed.MIXED_GROUPS:
            return searched if self.has_signal(group) else []
        if not self.credits_groups_alone:
            return [i for i in searched if group.trajectories[i].correct]
        advantages_G = group_advantages(
            self._rewards(group),
            baseline=self.config.baseline,  # type: ignore[arg-type]  # checked when built
            scale=self.config.scale,  # type: ignore[arg-type]
        )
        return [i for i in searched if is_success(group.trajectories[i], float(advantages_G[i]))]

    def reference_samples(self, groups: Sequence[Group]) -> list[Sample]:
        """One sample a trajectory, for the reference log-probabilities that ``credit`` takes;
        empty where the algorithm has no KL term in the reward."""
        if not self._kl_in_reward:
            return []
        return [
            make_sample(t, np.zeros(len(t.rounds)), 0.0) for g in groups for t in g.trajectories
        ]

    def credit(
        self, groups: Sequence[Group], reference_logprobs: Sequence[np.ndarray] | None = None
    ) -> CreditResult:
        """Samples and normaliser of one batch, and the credit of each trajectory.

        ``reference_logprobs`` holds float32[L] for each of ``reference_samples(groups)``.
        Trajectories whose gradient is zero (advantage 0 everywhere and no KL term) are not among
        the samples, but count in the normaliser: it is taken over all trajectories of the batch.
        """
        trajectories = [t for g in groups for t in g.trajectories]
        credits = self._credits(groups, reference_logprobs)
        weights, normaliser = aggregate(
            [t.num_policy_tokens for t in trajectories],
            self.config.aggregation,  # type: ignore[arg-type]  # checked when built
            constant=self.config.constant_normaliser,
        )
        keep_all = self.objective.loss_kl_coef > 0
        samples = [
            make_sample(trajectory, credit.round_advantages, float(weight))
            for trajectory, credit, weight in zip(trajectories, credits, weights, strict=True)
            if trajectory.num_policy_tokens and (keep_all or credit.round_advantages.any())
        ]
        return CreditResult(
            samples=samples,
            normaliser=normaliser,
            trajectories=credits,
            metrics=credit_metrics(trajectories, credits, asked=self._asked(groups)),
        )

    @property
    def weighs_rounds(self) -> bool:
        """Whether verdicts become weights at all."""
        return self.config.credit == "contribution" and self._judged

    def weighs(self, credit: TrajectoryCredit) -> bool:
        """Whether this trajectory's weights come from verdicts: a success's, or also a failure's
        by ``failures``."""
        return self.weighs_rounds and (credit.success or self.config.failures != "uniform")

    def round_weights(self, p_S: np.ndarray, success: bool) -> np.ndarray:
        """float64[S]: the weights of a trajectory whose search rounds contributed ``p_S``."""
        if not self.weighs_rounds:
            return np.ones(len(p_S))
        return round_weights(
            p_S,
            success=success,
            failures=self.config.failures,  # type: ignore[arg-type]  # checked when built
            alpha=self.config.alpha,
            no_contribution=self.config.no_contribution,  # type: ignore[arg-type]
            failed_verdict=self.config.failed_verdict,  # type: ignore[arg-type]
        )

    def opposite_verdicts(self, credit: TrajectoryCredit) -> tuple[OppositeVerdict | None, ...]:
        """Of each search round, what the opposite verdict would have done to the weights (see
        ``pipeline.credit.sensitivity``); ``None`` for a round without a verdict."""
        return opposite_verdicts(
            credit.contributions, lambda p_S: self.round_weights(p_S, credit.success)
        )

    @property
    def _judged(self) -> bool:
        return self.verdict_need is not VerdictNeed.NONE

    def _asked(self, groups: Sequence[Group]) -> list[bool] | None:
        """Of each trajectory, whether verdicts were asked for it."""
        if not self._judged:
            return None
        chosen = [set(self.to_judge(g)) for g in groups]
        return [
            i in judged
            for g, judged in zip(groups, chosen, strict=True)
            for i in range(len(g.trajectories))
        ]

    @property
    def _kl_in_reward(self) -> bool:
        return self.objective.needs_reference and self.objective.kl_in == "reward"

    def _rewards(self, group: Group) -> np.ndarray:
        """float64[G]: outcome rewards with the length penalty."""
        penalties = [
            overlong_penalty(
                t.num_policy_tokens,
                limit=self.config.overlong_limit,
                margin=self.config.overlong_margin,
            )
            for t in group.trajectories
        ]
        return group.rewards + np.array(penalties)

    def _credits(
        self, groups: Sequence[Group], reference_logprobs: Sequence[np.ndarray] | None
    ) -> list[TrajectoryCredit]:
        rewards = [self._rewards(g) for g in groups]
        if self._kl_in_reward:
            rewards = self._less_kl(groups, rewards, reference_logprobs)
        per_group = advantages(
            rewards,
            baseline=self.config.baseline,  # type: ignore[arg-type]  # checked when built
            scale=self.config.scale,  # type: ignore[arg-type]
        )
        return [
            credit
            for group, advantages_G in zip(groups, per_group, strict=True)
            for credit in self._credit_group(group, advantages_G)
        ]

    def _less_kl(
        self,
        groups: Sequence[Group],
        rewards: Sequence[np.ndarray],
        reference_logprobs: Sequence[np.ndarray] | None,
    ) -> list[np.ndarray]:
        """``r_i - kl_coef * KL_i``, with the sum over the trajectory's tokens."""
        samples = self.reference_samples(groups)
        if reference_logprobs is None or len(reference_logprobs) != len(samples):
            raise ValueError("kl_in=reward needs reference log-probabilities of every trajectory")
        kl = np.array(
            [
                trajectory_kl(s.sampler_logprobs, r, s.loss_mask, self.objective.kl_estimator)
                for s, r in zip(samples, reference_logprobs, strict=True)
            ]
        )
        split = np.split(kl, np.cumsum([len(r) for r in rewards])[:-1])
        coef = self.objective.kl_coef
        return [r - coef * k for r, k in zip(rewards, split, strict=True)]

    def _credit_group(self, group: Group, advantages_G: np.ndarray) -> list[TrajectoryCredit]:
        p = [
            contributions(
                [r.verdict for r in t.search_rounds],
                self.config.signal,  # type: ignore[arg-type]  # checked when built
            )
            for t in group.trajectories
        ]
        own: Sequence[np.ndarray | None] = [None] * len(p)
        if self.config.credit == "process":
            processed = process_advantages(
                p,
                norm_by_std=self.config.scale != "none",
                failed_as_zero=self.config.failed_verdict == "zero",
            )
            own = [self.config.process_coef * a_S for a_S in processed]
        return [
            self._credit_trajectory(t, float(a), p_S, own_S)
            for t, a, p_S, own_S in zip(group.trajectories, advantages_G, p, own, strict=True)
        ]

    def _credit_trajectory(
        self, trajectory: Trajectory, advantage: float, p_S: np.ndarray, own_S: np.ndarray | None
    ) -> TrajectoryCredit:
        success = is_success(trajectory, advantage)
        weights_S = self.round_weights(p_S, success)
        return TrajectoryCredit(
            group_id=trajectory.group_id,
            sample_id=trajectory.sample_id,
            advantage=advantage,
            success=success,
            contributions=p_S,
            weights=weights_S,
            round_advantages=round_advantages(advantage, weights_S, own_S),
        )


def is_success(trajectory: Trajectory, advantage: float) -> bool:
    """Outcome reward 1 and a positive advantage: shaping never makes a wrong answer one."""
    return trajectory.correct and advantage > 0


def build_algorithm(
    config: AlgorithmConfig, correction: CorrectionConfig | None = None
) -> Algorithm:
    """The algorithm that a configuration names. Raises UserError for values it cannot take."""
    correction = correction or CorrectionConfig()
    check_algorithm(config)
    check_correction(correction)
    return Algorithm(
        config=config,
        objective=Objective(
            loss=config.loss,  # type: ignore[arg-type]  # checked above, like the next ones
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coef=config.kl_coef,
            kl_in=config.kl_in,  # type: ignore[arg-type]
            kl_estimator=config.kl_estimator,  # type: ignore[arg-type]
            recompute_proximal=correction.proximal == "recomputed",
            correction=Correction(
                kind=correction.kind,  # type: ignore[arg-type]
                level=correction.level,  # type: ignore[arg-type]
                low=correction.low,
                high=correction.high,
                geometric=correction.geometric,
            ),
        ),
        verdict_need=_verdict_need(config),
    )


def _verdict_need(config: AlgorithmConfig) -> VerdictNeed:
    if config.credit == "process":
        return VerdictNeed.MIXED_GROUPS
    if config.credit == "uniform" or config.alpha == 0:
        return VerdictNeed.NONE
    return VerdictNeed.WINNERS if config.failures == "uniform" else VerdictNeed.MIXED_GROUPS
