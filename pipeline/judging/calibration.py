"""Whether a judge's confidence is right: of the rounds it calls 1 in seven of ten repeats, are
seven of ten labelled 1?

The confidence of a round is the mean of a signal over its repeats (and of a judge whose verdicts
are fractions, such as an ensemble's mean, the verdict itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.judging.judged import SIGNALS, JudgedRound, signal_class
from pipeline.judging.resample import QuestionBootstrap

__all__ = ["BINS", "bin_of", "calibration_summary", "has_confidence"]

BINS = 10


def has_confidence(rounds: Sequence[JudgedRound]) -> bool:
    """Whether there is any: several verdicts on a round, or verdicts between 0 and 1."""
    return any(
        len(r.given) > 1 or any(value % 1 for v in r.given for value in (v.utility, v.correctness))
        for r in rounds
    )


def calibration_summary(
    rounds: Sequence[JudgedRound], bootstrap: QuestionBootstrap
) -> dict[str, dict[str, Any]] | None:
    """For each signal a dict with these keys, over labelled rounds with a verdict; None where no
    round has a confidence (`has_confidence`):

    - ``rounds``: so many;
    - ``brier``: mean squared distance of confidence and label (Brier 1950), with its interval;
    - ``ece``: expected calibration error, the mean distance between confidence and share of label
      1 within bins of equal width, weighted by their rounds (Naeini et al. 2015). With few rounds
      it is too high even for a judge that is calibrated; so are its interval's ends;
    - ``bins``: those with rounds, each ``low``, ``high``, ``rounds``, ``confidence`` (mean) and
      ``label_share``. A bin holds its upper end; the first also 0.
    """
    if not has_confidence(rounds):
        return None
    return {signal: _of_signal(rounds, signal, bootstrap) for signal in SIGNALS}


def _of_signal(
    rounds: Sequence[JudgedRound], signal: str, bootstrap: QuestionBootstrap
) -> dict[str, Any]:
    value = SIGNALS[signal]
    rows = [
        (r.question, float(np.mean([value(v) for v in r.given])), signal_class(r.label, signal))
        for r in rounds
        if r.label is not None and r.given
    ]
    questions = np.array([row[0] for row in rows], dtype=np.str_)
    confidence = np.array([row[1] for row in rows], dtype=np.float64)
    label = np.array([row[2] for row in rows], dtype=np.float64)
    squared = np.stack([(confidence - label) ** 2, np.ones(len(rows))], axis=1)
    brier = bootstrap.sums(questions, squared)
    binned = _binned(confidence, label)
    return {
        "rounds": len(rows),
        "brier": bootstrap.ratio(*brier.T).as_dict(),
        "ece": bootstrap.estimate(bootstrap.sums(questions, binned), _ece).as_dict(),
        "bins": _table(binned.sum(axis=0)),
    }


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """int64[N]: the bin of each confidence.

    >>> bin_of(np.array([0.0, 0.1, 0.11, 0.7, 1.0])).tolist()
    [0, 0, 1, 6, 9]
    """
    inner = np.linspace(0.0, 1.0, BINS + 1)[1:-1]
    return np.searchsorted(inner, np.round(confidence, 9) - 1e-12)


def _binned(confidence: np.ndarray, label: np.ndarray) -> np.ndarray:
    """float64[N, 3 * BINS]: one row's part in the rounds, confidences and labels of each bin."""
    place = np.eye(BINS)[bin_of(confidence)]
    return np.concatenate([place, place * confidence[:, None], place * label[:, None]], axis=1)


def _ece(sums: np.ndarray) -> np.ndarray:
    rounds, confidence, label = np.split(sums, 3, axis=-1)
    total = rounds.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error: np.ndarray = np.abs(confidence - label).sum(axis=-1) / total
    return np.where(total > 0, error, np.nan)


def _table(sums: np.ndarray) -> list[dict[str, Any]]:
    rounds, confidence, label = np.split(sums, 3)
    return [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "rounds": int(rounds[i]),
            "confidence": float(confidence[i] / rounds[i]),
            "label_share": float(label[i] / rounds[i]),
        }
        for i in range(BINS)
        if rounds[i]
    ]
