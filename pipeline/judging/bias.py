"""Where a judge errs: by round number, by length of the round, by kind of round.

A judge may like late rounds, or long ones. Shares of 1s differ between such groups in truth, too,
so what tells is the judge's share less that of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.judging.agreement import cell_counts
from pipeline.judging.judged import SIGNALS, JudgedRound, votes
from pipeline.judging.resample import QuestionBootstrap

__all__ = ["by_kind", "by_length", "by_round"]

_QUARTILES = 4


def by_round(rounds: Sequence[JudgedRound], bootstrap: QuestionBootstrap) -> list[dict[str, Any]]:
    """One entry a round number: ``round``, and the keys of `_entry`."""
    numbers = sorted({r.number for r in rounds})
    return [
        {"round": n, **_entry([r for r in rounds if r.number == n], bootstrap)} for n in numbers
    ]


def by_length(rounds: Sequence[JudgedRound], bootstrap: QuestionBootstrap) -> list[dict[str, Any]]:
    """One entry a quartile of length: ``quartile`` (from 1), ``chars`` (shortest and longest), and
    the keys of `_entry`. Rounds of one length are in one quartile; one without rounds is left
    out."""
    chars = np.array([r.chars for r in rounds])
    if not len(chars):
        return []
    cuts = np.quantile(chars, [i / _QUARTILES for i in range(1, _QUARTILES)])
    places = np.searchsorted(cuts, chars)
    entries = []
    for quartile in range(_QUARTILES):
        inside = [r for r, place in zip(rounds, places, strict=True) if place == quartile]
        if inside:
            lengths = [r.chars for r in inside]
            entry = {"quartile": quartile + 1, "chars": [min(lengths), max(lengths)]}
            entries.append({**entry, **_entry(inside, bootstrap)})
    return entries


def by_kind(rounds: Sequence[JudgedRound], bootstrap: QuestionBootstrap) -> list[dict[str, Any]]:
    """One entry a kind of round, where traces say the kinds: ``kind``, and the keys of
    `_entry`."""
    kinds = sorted({r.kind for r in rounds} - {""})
    return [{"kind": k, **_entry([r for r in rounds if r.kind == k], bootstrap)} for k in kinds]


def _entry(rounds: Sequence[JudgedRound], bootstrap: QuestionBootstrap) -> dict[str, Any]:
    """``rounds``, ``without_verdict`` (asks), and for each signal estimates: ``agreement``,
    ``label_share``, ``verdict_share`` and ``excess``, the verdicts' share of 1s less the labels'
    (above 0: the judge is too generous here)."""
    missing = sum(verdict is None for r in rounds for verdict in r.verdicts)
    return {"rounds": len(rounds), "without_verdict": missing} | {
        signal: _signal_entry(rounds, signal, bootstrap) for signal in SIGNALS
    }


def _signal_entry(
    rounds: Sequence[JudgedRound], signal: str, bootstrap: QuestionBootstrap
) -> Mapping[str, Any]:
    cells = cell_counts(votes(rounds, signal), bootstrap)
    n00, n01, n10, n11 = cells.T
    total = cells.sum(axis=1)
    return {
        "agreement": bootstrap.share(n00 + n11, total).as_dict(),
        "label_share": bootstrap.share(n10 + n11, total).as_dict(),
        "verdict_share": bootstrap.share(n01 + n11, total).as_dict(),
        "excess": bootstrap.ratio(n01 - n10, total).as_dict(),
    }
