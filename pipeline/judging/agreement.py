"""How far a judge's verdicts agree with labels, a signal at a time, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.judging.judged import SIGNALS, JudgedRound, Votes, votes
from pipeline.judging.resample import QuestionBootstrap
from pipeline.statistics import Estimate

__all__ = ["agreement_summary", "cell_counts", "chance_agreement", "cohen_kappa", "counts"]

_CLASSES = (0, 1)


def agreement_summary(
    rounds: Sequence[JudgedRound], bootstrap: QuestionBootstrap
) -> dict[str, dict[str, Any]]:
    """For each signal a dict with these keys; estimates are ``{value, low, high, n}``, ``n`` being
    questions, and None where there is nothing to divide by:

    - ``verdicts``: verdicts on labelled rounds, repeats one by one;
    - ``confusion``: ``[[n00, n01], [n10, n11]]``, rows by label, columns by verdict;
    - ``agreement``: share of verdicts that are the label;
    - ``kappa``: Cohen's kappa (Cohen 1960), agreement beyond what chance gives;
    - ``recall``, ``precision``: by class "0" and "1";
    - ``label_share``, ``verdict_share``: share of 1s in either.
    """
    return {signal: _of_signal(votes(rounds, signal), bootstrap) for signal in SIGNALS}


def counts(rounds: Sequence[JudgedRound]) -> dict[str, int]:
    """``rounds``, of which ``unlabelled``; ``asked`` (once a repeat), of which
    ``without_verdict``."""
    asked = [verdict for r in rounds for verdict in r.verdicts]
    return {
        "rounds": len(rounds),
        "unlabelled": sum(r.label is None for r in rounds),
        "asked": len(asked),
        "without_verdict": sum(verdict is None for verdict in asked),
    }


def _of_signal(cast: Votes, bootstrap: QuestionBootstrap) -> dict[str, Any]:
    cells = cell_counts(cast, bootstrap)
    n00, n01, n10, n11 = cells.T
    right, total = n00 + n11, cells.sum(axis=1)
    label = {0: n00 + n01, 1: n10 + n11}
    verdict = {0: n00 + n10, 1: n01 + n11}
    hits = {0: n00, 1: n11}
    share = bootstrap.share
    return {
        "verdicts": len(cast),
        "confusion": cells.sum(axis=0).astype(int).reshape(2, 2).tolist(),
        "agreement": share(right, total).as_dict(),
        "kappa": _kappa(cells, bootstrap).as_dict(),
        "recall": {str(c): share(hits[c], label[c]).as_dict() for c in _CLASSES},
        "precision": {str(c): share(hits[c], verdict[c]).as_dict() for c in _CLASSES},
        "label_share": share(label[1], total).as_dict(),
        "verdict_share": share(verdict[1], total).as_dict(),
    }


def cell_counts(cast: Votes, bootstrap: QuestionBootstrap) -> np.ndarray:
    """float64[Q, 4]: a question's verdicts by label and verdict: 00, 01, 10, 11."""
    return bootstrap.sums(cast.question, np.eye(4)[2 * cast.label + cast.verdict])


def cohen_kappa(cells: np.ndarray) -> np.ndarray:
    """Cohen's kappa of counts float64[..., 4] (as ``cell_counts``); NaN where chance alone agrees
    always, or where nothing was counted.

    >>> round(float(cohen_kappa(np.array([20.0, 10.0, 5.0, 15.0]))), 6)
    0.4
    """
    total = cells.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = (cells[..., 0] + cells[..., 3]) / total
        chance = chance_agreement(cells)
        kappa: np.ndarray = (observed - chance) / (1 - chance)
    return np.where(np.isfinite(kappa), kappa, np.nan)


def chance_agreement(cells: np.ndarray) -> np.ndarray:
    """Agreement expected of independent labels and verdicts with the same shares of 1s."""
    n00, n01, n10, n11 = np.moveaxis(cells, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected: np.ndarray = ((n00 + n01) * (n00 + n10) + (n10 + n11) * (n01 + n11)) / (
            cells.sum(axis=-1) ** 2
        )
    return expected


def _kappa(cells: np.ndarray, bootstrap: QuestionBootstrap) -> Estimate:
    """Where every verdict is right, no resample differs: then the interval is that of the
    agreement, carried over at the observed chance agreement."""
    found = bootstrap.estimate(cells, cohen_kappa)
    if math.isnan(found.value) or found.value < 1:
        return found
    chance = float(chance_agreement(cells.sum(axis=0)))
    total = cells.sum(axis=1)
    low = bootstrap.share(total, total).low
    return Estimate(1.0, (low - chance) / (1 - chance), 1.0, found.n)
