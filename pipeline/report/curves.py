"""The learning curves: which metrics share a picture, and what to look for in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.charts import Series, line_chart

if TYPE_CHECKING:
    from pipeline.step_record import StepRecord

__all__ = ["Curve", "learning_curves"]


@dataclass(frozen=True, slots=True)
class Curve:
    """A picture with its title and one sentence on what it shows."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class _Plan:
    title: str
    caption: str
    metrics: tuple[tuple[str, str], ...]  # (metric name, label)
    percent: bool = False
    floor: float | None = 0.0
    smooth: bool = True
    only_if_used: bool = False  # all zeros mean that it is switched off


_PLANS = (
    _Plan(
        "Questions answered correctly",
        "Share of sampled episodes that ended with a right answer. This is what training raises.",
        (("reward/exact_match", "while training"), ("evaluate/exact_match", "dev set")),
        percent=True,
    ),
    _Plan(
        "Searches per question",
        "How many queries the agent issues before it answers.",
        (("rollout/searches_per_question", "searches"),),
    ),
    _Plan(
        "Redundant searches",
        "Share of searches that brought back nothing the agent had not already read.",
        (
            ("rollout/redundant_searches", "while training"),
            ("evaluate/redundant_searches", "dev set"),
        ),
        percent=True,
    ),
    _Plan(
        "Evidence found, answers withheld",
        "Share of the needed passages that were found, and of episodes that gave no answer.",
        (("rollout/evidence_recall", "evidence found"), ("rollout/no_answer", "no answer")),
        percent=True,
    ),
    _Plan(
        "Staleness of the training data",
        "How many weight updates old the trained tokens were. The bound is buffer.max_staleness.",
        (("buffer/staleness_mean", "mean"), ("buffer/staleness_max", "largest")),
        smooth=False,
    ),
    _Plan(
        "Groups dropped",
        "Per step: groups without a signal (all tries right or all wrong), and groups lost to "
        "failures of the machinery.",
        (("buffer/filtered", "no signal"), ("buffer/failed", "failed")),
    ),
    _Plan(
        "Policy loss",
        "The quantity that the optimizer lowers; near zero by construction, since advantages "
        "balance.",
        (("learner/loss", "loss"),),
        floor=None,
    ),
    _Plan(
        "Gradient norm",
        "Size of the update before clipping. Spikes would mean instability.",
        (("learner/grad_norm", "gradient norm"),),
    ),
    _Plan(
        "Entropy",
        "How undecided the policy is, per token. It falls as habits settle; a collapse to zero "
        "would end exploration.",
        (("learner/entropy", "entropy"),),
    ),
    _Plan(
        "Distance to the starting policy",
        "Estimated KL divergence to the frozen reference, per token.",
        (("learner/kl_reference", "KL"),),
        only_if_used=True,
    ),
    _Plan(
        "Learner against sampler",
        "Absolute difference of log-probabilities on the trained tokens, before the update: "
        "staleness and numerics together.",
        (("learner/logprob_difference_mean", "mean"),),
    ),
    _Plan(
        "Seconds per step",
        "Where a step's time goes: the optimizer at work, or waiting for groups to be played.",
        (("learner/update_s", "learner at work"), ("learner/wait_s", "learner waiting")),
    ),
    _Plan(
        "Waiting for the judge",
        "Seconds of a step in which the learner waited and only judges had what it still lacked.",
        (("judge/wait_s", "seconds"),),
        only_if_used=True,
    ),
    _Plan(
        "The judge against its canaries",
        "Share of the last rounds with known labels on which the judge says what the label says. "
        "Below judge.canary_alarm is an alarm.",
        (("judge/canary_u_agreement", "u"), ("judge/canary_v_agreement", "v")),
        percent=True,
        floor=None,
        smooth=False,
    ),
    _Plan(
        "Tokens per episode",
        "Tokens that the policy wrote in an episode, its reasoning and queries included.",
        (("rollout/tokens_per_trajectory", "tokens"),),
        floor=None,
    ),
)


def learning_curves(records: Sequence[StepRecord]) -> list[Curve]:
    """One picture a plan; metrics that were never measured, and empty pictures, are left out."""
    curves = []
    for plan in _PLANS:
        series = [_series(records, *metric, smooth=plan.smooth) for metric in plan.metrics]
        series = [s for s in series if s.points]
        used = any(y != 0 for s in series for _, y in s.points)
        if series and (used or not plan.only_if_used):
            svg = line_chart(series, percent=plan.percent, floor=plan.floor)
            curves.append(Curve(plan.title, plan.caption, svg))
    return curves


def _series(records: Sequence[StepRecord], name: str, label: str, *, smooth: bool) -> Series:
    points = [
        (float(r.step), r.metrics[name])
        for r in records
        if math.isfinite(r.metrics.get(name, math.nan))
    ]
    return Series(label, points, marker=name.startswith("evaluate/"), smooth=smooth)
