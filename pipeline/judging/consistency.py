"""Whether a judge says the same again: repeats of the same rounds, no labels needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.judging.judged import SIGNALS, JudgedRound, signal_class
from pipeline.judging.resample import QuestionBootstrap

__all__ = ["consistency_summary", "pairwise_agreement"]


def consistency_summary(
    rounds: Sequence[JudgedRound], bootstrap: QuestionBootstrap
) -> dict[str, dict[str, Any]] | None:
    """For each signal, over rounds with two verdicts or more; None where there is none:

    - ``rounds``: so many;
    - ``unanimous``: share of them on which all verdicts are of one class, with its interval;
    - ``pairwise``: the chance that two verdicts on a round are of one class, mean over rounds.
    """
    repeated = [r for r in rounds if len(r.given) > 1]
    if not repeated:
        return None
    return {signal: _of_signal(repeated, signal, bootstrap) for signal in SIGNALS}


def _of_signal(
    rounds: Sequence[JudgedRound], signal: str, bootstrap: QuestionBootstrap
) -> dict[str, Any]:
    classes = [[signal_class(v, signal) for v in r.given] for r in rounds]
    rows = [(float(len(set(c)) == 1), pairwise_agreement(sum(c), len(c)), 1.0) for c in classes]
    questions = np.array([r.question for r in rounds], dtype=np.str_)
    unanimous, pairwise, total = bootstrap.sums(questions, np.array(rows)).T
    return {
        "rounds": len(rounds),
        "unanimous": bootstrap.share(unanimous, total).as_dict(),
        "pairwise": bootstrap.share(pairwise, total).as_dict(),
    }


def pairwise_agreement(ones: int, n: int) -> float:
    """Share of the pairs of ``n`` verdicts that are equal, ``ones`` of them being 1.

    >>> pairwise_agreement(2, 3)  # of three pairs, one
    0.3333333333333333
    """
    zeros = n - ones
    return (ones * (ones - 1) + zeros * (zeros - 1)) / (n * (n - 1))
