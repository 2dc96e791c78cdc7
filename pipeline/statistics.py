"""Numbers with their uncertainty: every estimate comes with a 95 % interval.

The unit that is resampled is the question: samples of one question are not independent, so
``k`` samples a question are one cluster. The bootstrap is scipy's percentile bootstrap with a
fixed seed, so that the same trajectories always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = [
    "Estimate",
    "mean_by_question",
    "paired_difference",
    "paired_ratio_change",
    "pass_at_k",
    "pass_at_k_by_question",
    "ratio_by_question",
    "wilson",
]

CONFIDENCE = 0.95
NUM_RESAMPLES = 4999
_SEED = 20260414
_BATCH = 256  # resamples held in memory at a time


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its 95 % interval, and the number of questions it rests on.

    With no data at all, ``n`` is 0 and the three numbers are NaN.
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """``{value, low, high, n}``, NaN as None, for JSON."""
        return {
            name: None if isinstance(x, float) and math.isnan(x) else x
            for name, x in asdict(self).items()
        }


_NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def wilson(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927).

    >>> e = wilson(50, 100)
    >>> round(e.low, 4), e.value, round(e.high, 4)
    (0.4038, 0.5, 0.5962)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return _NOTHING
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def mean_by_question(values: Sequence[Sequence[float]], *, share: bool = False) -> Estimate:
    """The mean of all values, ``values[q]`` being those of question ``q``.

    With ``share=True`` the values are 0 or 1: one value a question gets Wilson's interval,
    several a bootstrap over questions. Where all questions agree, a bootstrap cannot see
    any spread: then a share gets Wilson's interval with one vote a question.
    """
    kept = [np.asarray(v, dtype=np.float64) for v in values if len(v)]
    if not kept:
        return _NOTHING
    sums = np.array([v.sum() for v in kept])
    counts = np.array([len(v) for v in kept], dtype=np.float64)
    if share:
        means = sums / counts
        if (counts == 1).all() or (means == 0).all() or (means == 1).all():
            return wilson(int(means.sum()), len(kept))
    return ratio_by_question(sums, counts)


def ratio_by_question(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray
) -> Estimate:
    """``sum(numerators) / sum(denominators)``, one pair a question, bootstrap over questions.

    So the share of redundant search rounds is by rounds, and its interval by questions.
    Questions with denominator 0 say nothing and are left out of ``n``.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape:
        raise ValueError(f"{top.shape} numerators, {bottom.shape} denominators")
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    if not len(top):
        return _NOTHING
    value = float(top.sum() / bottom.sum())
    low, high = _bootstrap((top, bottom), value, _ratio)
    return Estimate(value, low, high, len(top))


def paired_difference(before: Mapping[str, float], after: Mapping[str, float]) -> Estimate:
    """Mean of ``after - before`` over the questions in both, by question id.

    Raises ValueError where no question is in both.
    """
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise ValueError("no question was asked both before and after")
    rises = np.array([after[q] - before[q] for q in shared], dtype=np.float64)
    return ratio_by_question(rises, np.ones(len(rises)))


def paired_ratio_change(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> Estimate:
    """``sum(a) / sum(b)`` after, less the same before, over the questions in both.

    The values are ``(a, b)`` of a question, by its id; the bootstrap draws questions.
    Raises ValueError where no question is in both, or where either ``sum(b)`` is 0.
    """
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise ValueError("no question was asked both before and after")
    columns = np.array([(*before[q], *after[q]) for q in shared], dtype=np.float64).T
    if columns[1].sum() == 0 or columns[3].sum() == 0:
        raise ValueError("a ratio over nothing")

    def change(*column: np.ndarray, axis: int = -1) -> Any:
        a, b, c, d = (x.sum(axis=axis) for x in column)
        return c / np.maximum(d, 1.0) - a / np.maximum(b, 1.0)

    value = float(change(*columns))
    low, high = _bootstrap(tuple(columns), value, change)
    return Estimate(value, low, high, len(shared))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of "at least one of k samples is right" (Chen et al. 2021, eq. 1).

    ``1 - C(n - correct, k) / C(n, k)`` from ``n >= k`` samples, ``correct`` of them right.

    >>> pass_at_k(n=4, correct=1, k=2)  # 1 - C(3, 2) / C(4, 2) = 1 - 3/6
    0.5
    """
    if not 0 < k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} needs 0 < k <= n and 0 <= correct <= n, got {n=} {correct=}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def pass_at_k_by_question(correct: Sequence[Sequence[bool]], k: int) -> Estimate:
    """pass@k over questions; ``correct[q]`` are the samples of question ``q``.

    Questions with fewer than ``k`` samples are left out.
    """
    values = [[pass_at_k(len(c), sum(map(bool, c)), k)] for c in correct if len(c) >= k]
    binary = all(v[0] in (0.0, 1.0) for v in values)
    return mean_by_question(values, share=binary)


def _ratio(top: np.ndarray, bottom: np.ndarray, axis: int = -1) -> Any:
    return top.sum(axis=axis) / bottom.sum(axis=axis)


def _bootstrap(
    columns: Sequence[np.ndarray], value: float, statistic: Callable[..., Any]
) -> tuple[float, float]:
    """The percentile interval of a statistic of columns, questions drawn with replacement."""
    if len(columns[0]) < 2 or not any(np.ptp(column) for column in columns):
        return value, value
    from scipy.stats import bootstrap

    result = bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
