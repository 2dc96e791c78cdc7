"""Refuses values that an algorithm cannot take: one clear message a mistake."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from pipeline.config import AlgorithmConfig, CorrectionConfig
from pipeline.credit.advantage import Baseline, Scale
from pipeline.credit.aggregate import Aggregation
from pipeline.credit.contribution import (
    FailedVerdictRule,
    FailureRule,
    NoContributionRule,
    Signal,
)
from pipeline.credit.kl import KlEstimator
from pipeline.credit.objective import CorrectionKind, CorrectionLevel, KlPlace, PolicyLoss
from pipeline.errors import UserError

__all__ = ["check_algorithm", "check_correction"]

_ALGORITHM: Mapping[str, tuple[str, ...]] = {
    "baseline": get_args(Baseline),
    "scale": get_args(Scale),
    "credit": ("contribution", "uniform", "process"),
    "signal": get_args(Signal),
    "no_contribution": get_args(NoContributionRule),
    "failed_verdict": get_args(FailedVerdictRule),
    "failures": get_args(FailureRule),
    "aggregation": get_args(Aggregation),
    "loss": get_args(PolicyLoss),
    "kl_in": get_args(KlPlace),
    "kl_estimator": get_args(KlEstimator),
}
_DEFAULTS = AlgorithmConfig()
_CORRECTION: Mapping[str, tuple[str, ...]] = {
    "proximal": ("sampler", "recomputed"),
    "kind": get_args(CorrectionKind),
    "level": get_args(CorrectionLevel),
}


def check_algorithm(config: AlgorithmConfig) -> None:
    """Raises UserError for the first value that is unknown or out of range."""
    _check_names("algorithm", config, _ALGORITHM)
    _require(config.alpha >= 0, "alpha", config.alpha, "0 or more, inf for the limit")
    _require(0 <= config.clip_low <= 1, "clip_low", config.clip_low, "in [0, 1]")
    _require(config.clip_high >= 0, "clip_high", config.clip_high, "0 or more")
    _require(_at_least_0(config.kl_coef), "kl_coef", config.kl_coef, "0 or more")
    _require(_at_least_0(config.process_coef), "process_coef", config.process_coef, "0 or more")
    _require(config.overlong_limit >= 0, "overlong_limit", config.overlong_limit, "0 or more")
    if config.overlong_limit:
        value, limit = config.overlong_margin, config.overlong_limit
        _require(0 <= value <= limit, "overlong_margin", value, f"between 0 and {limit}")
    silence = config.no_answer_reward
    _require(
        silence <= 0 and math.isfinite(silence),
        "no_answer_reward",
        silence,
        "0 or less, and finite",
    )
    _check_credit(config)
    if config.aggregation == "constant":
        constant = config.constant_normaliser
        allowed = "more than 0 with aggregation=constant"
        _require(0 < constant < math.inf, "constant_normaliser", constant, allowed)
    if config.scale == "group_std" and config.baseline != "group":
        raise UserError(
            f"algorithm.scale=group_std divides by the deviation from the group's mean and needs "
            f"algorithm.baseline=group, not {config.baseline}: use scale=none or scale=batch"
        )


def _check_credit(config: AlgorithmConfig) -> None:
    """No key is set that the chosen credit does not read."""
    unread = {"contribution": (), "process": ("alpha", "failures", "no_contribution")}.get(
        config.credit, ("alpha", "failures", "no_contribution", "signal", "failed_verdict")
    )
    for key in unread:
        value, default = getattr(config, key), getattr(_DEFAULTS, key)
        if value != default and not (key == "alpha" and value == 0):  # 0: uniform weights
            raise UserError(
                f"algorithm.{key}={value!r} has no effect with algorithm.credit={config.credit}: "
                f"leave it out, or set algorithm.credit=contribution (docs/algorithms.md)"
            )


def check_correction(config: CorrectionConfig) -> None:
    """Raises UserError for the first value that is unknown, out of range or contradictory."""
    _check_names("correction", config, _CORRECTION)
    if config.kind == "none":
        return
    if config.proximal != "recomputed":
        raise UserError(
            f"correction.kind={config.kind} needs correction.proximal=recomputed: with "
            "proximal=sampler the clipped ratio already compares with the sampler, and a factor "
            "would count the same difference twice"
        )
    low = config.low if config.kind == "masked" else 0.0
    if not 0 <= low < config.high:
        raise UserError(
            f"correction.low={config.low} and correction.high={config.high} must be 0 <= low < high"
        )


def _check_names(section: str, config: Any, names: Mapping[str, tuple[str, ...]]) -> None:
    for key, allowed in names.items():
        value = getattr(config, key)
        if value not in allowed:
            raise UserError(
                f"{section}.{key}={value!r} is unknown; use one of {', '.join(allowed)} "
                "(docs/algorithms.md)"
            )


def _at_least_0(value: float) -> bool:
    return value >= 0 and math.isfinite(value)


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise UserError(f"algorithm.{key}={value!r} must be {allowed} (docs/algorithms.md)")
