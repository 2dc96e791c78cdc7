"""The bootstrap of an audit: questions are drawn with replacement, with all their rounds.

Rounds of one question, and repeats of one round, are not independent. Every statistic of an audit
is a function of sums over questions, so a resample is a vector of how often each question was
drawn, and all resamples of a statistic are one matrix product. All statistics see the same
resamples; the seed is fixed, so that the same verdicts always give the same intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pipeline.statistics import CONFIDENCE, Estimate, wilson

__all__ = ["QuestionBootstrap"]

_SEED = 20260414
_SAME = 1e-12  # resamples that differ by less are equal but for rounding
_TAIL = 100 * (1 - CONFIDENCE) / 2  # percent left out at either end

Statistic = Callable[[np.ndarray], np.ndarray]  # float64[..., K] sums -> float64[...]


class QuestionBootstrap:
    """``resamples`` draws of the Q distinct ``questions``; percentile intervals of 95 %."""

    def __init__(self, questions: Iterable[str], resamples: int) -> None:
        self._places = {name: i for i, name in enumerate(sorted(set(questions)))}
        size = max(1, len(self._places))
        rng = np.random.default_rng(_SEED)
        drawn = rng.multinomial(size, np.full(size, 1.0 / size), size=resamples)
        self.weights = drawn.astype(np.float64)  # [resamples, Q]: how often each was drawn

    def sums(self, questions: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float64[Q, K]: ``columns`` (N, K) added up by ``questions``, str[N].

        Raises KeyError for a question that is not resampled.
        """
        totals = np.zeros((max(1, len(self._places)), columns.shape[1]))
        np.add.at(totals, [self._places[name] for name in questions.tolist()], columns)
        return totals

    def estimate(self, sums: np.ndarray, statistic: Statistic) -> Estimate:
        """A statistic of sums over questions, ``sums`` being float64[Q, K]; NaN where it is
        undefined. Resamples in which it is undefined are left out of the interval.

        ``n`` counts the questions that are not all zero. Fewer than two have no interval, nor has a
        statistic that is the same in all resamples: they saw no spread, which is not to say that
        there is none.
        """
        value = float(statistic(sums.sum(axis=0)))
        n = int(sums.any(axis=1).sum())
        if np.isnan(value):
            return Estimate(np.nan, np.nan, np.nan, 0)
        drawn = statistic(self.weights @ sums)
        drawn = drawn[~np.isnan(drawn)]
        if n < 2 or not len(drawn) or np.ptp(drawn) < _SAME:
            return Estimate(value, np.nan, np.nan, n)
        low, high = np.percentile(drawn, [_TAIL, 100 - _TAIL])
        return Estimate(value, float(low), float(high), n)

    def ratio(self, top: np.ndarray, bottom: np.ndarray) -> Estimate:
        """``sum(top) / sum(bottom)`` of float64[Q] each."""
        return self.estimate(np.stack([top, bottom], axis=1), ratio_of_sums)

    def share(self, top: np.ndarray, bottom: np.ndarray) -> Estimate:
        """A ratio that is a share. Where it is 0 or 1 in every question, a bootstrap sees no
        spread: then Wilson's interval with one vote a question."""
        if not bottom.any() or 0 < top.sum() < bottom.sum():
            return self.ratio(top, bottom)
        n = int((bottom > 0).sum())
        return wilson(n if top.any() else 0, n)


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """Column 0 over column 1, NaN over nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: np.ndarray = np.where(sums[..., 1] != 0, sums[..., 0] / sums[..., 1], np.nan)
    return ratio
