"""How far the data is from the policy: effective sample size, ratio quantiles, what was cut or
clipped.

Legend: ``_P`` one value a trained token.
"""

from __future__ import annotations

import numpy as np

__all__ = ["STALENESS_BINS", "effective_sample_size", "off_policy_metrics"]

# Name of a bin -> smallest and largest staleness in it, in publishes.
STALENESS_BINS = {
    "0": (0, 0),
    "1": (1, 1),
    "2": (2, 2),
    "3_4": (3, 4),
    "5_8": (5, 8),
    "9_up": (9, 2**31),
}
_QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


def effective_sample_size(ratio_P: np.ndarray) -> float:
    """``(sum r)^2 / (P sum r^2)``, in (0, 1]: the share of the tokens that weighted ones are worth.

    >>> effective_sample_size(np.array([1.0, 1.0])), effective_sample_size(np.array([1.0, 0.0]))
    (1.0, 0.5)
    """
    ratio_P = np.asarray(ratio_P, np.float64)
    square = float((ratio_P**2).sum())
    return float(ratio_P.sum() ** 2 / (len(ratio_P) * square)) if square > 0 else 0.0


def off_policy_metrics(
    sampler_ratio_P: np.ndarray,
    level_ratio_P: np.ndarray,
    factor_P: np.ndarray,
    cut_P: np.ndarray,
    clipped_P: np.ndarray,
    staleness_P: np.ndarray,
) -> dict[str, float]:
    """Over all tokens, and again by staleness (``..._stale_N``); empty without tokens.

    ``sampler_ratio_P`` is current over sampler for each token; ``level_ratio_P`` proximal over
    sampler at the correction's level, before it was cut; ``factor_P`` what was applied;
    ``clipped_P`` whether the loss's clip took the gradient.
    """
    metrics: dict[str, float] = {}
    arrays = (sampler_ratio_P, level_ratio_P, factor_P, cut_P, clipped_P)
    for suffix, chosen_P in _selections(np.asarray(staleness_P)):
        if not chosen_P.any():
            continue
        ratio, level, factor, cut, clipped = (np.asarray(a)[chosen_P] for a in arrays)
        values = {
            "effective_sample_size": effective_sample_size(level),
            "correction_cut_fraction": float(cut.mean()),
            "correction_factor_mean": float(factor.mean(dtype=np.float64)),
            "clip_fraction": float(clipped.mean()),
            **{f"sampler_ratio_{n}": float(np.quantile(ratio, q)) for n, q in _QUANTILES.items()},
            **{f"level_ratio_{n}": float(np.quantile(level, q)) for n, q in _QUANTILES.items()},
        }
        metrics.update({name + suffix: value for name, value in values.items()})
    return metrics


def _selections(staleness_P: np.ndarray) -> list[tuple[str, np.ndarray]]:
    everything = np.ones(len(staleness_P), np.bool_)
    bins = [
        (f"_stale_{name}", (staleness_P >= low) & (staleness_P <= high))
        for name, (low, high) in STALENESS_BINS.items()
    ]
    return [("", everything), *bins]
