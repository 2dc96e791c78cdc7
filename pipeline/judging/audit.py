"""The audit of a judge as one dict: agreement, calibration, consistency, biases, cost.

``pipeline/commands/audit.py`` says what every key of ``audit.json`` means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.judging.agreement import agreement_summary, counts
from pipeline.judging.bias import by_kind, by_length, by_round
from pipeline.judging.calibration import calibration_summary
from pipeline.judging.consistency import consistency_summary
from pipeline.judging.costs import MODEL_COSTS, MODEL_EVENTS
from pipeline.judging.judged import JudgedRound
from pipeline.judging.resample import QuestionBootstrap

__all__ = ["audit_summary", "cost_summary"]


def audit_summary(
    rounds: Sequence[JudgedRound],
    stats: Mapping[str, float],
    *,
    seconds: float,
    resamples: int,
) -> dict[str, Any]:
    """All numbers of an audit, ready for JSON. ``stats`` are the judge's totals for it, ``seconds``
    the time from the first question to the last answer.

    Biases are over labelled rounds. Raises ValueError without any round.
    """
    if not rounds:
        raise ValueError("an audit needs a round")
    bootstrap = QuestionBootstrap((r.question for r in rounds), resamples)
    labelled = [r for r in rounds if r.label is not None]
    asked = sum(len(r.verdicts) for r in rounds)
    traces = {id(r.trace): r.trace.labelled_by for r in rounds}
    return {
        "questions": len({r.question for r in rounds}),
        "traces": len(traces),
        "labelled_by": dict(sorted(Counter(traces.values()).items())),
        "repeats": max(len(r.verdicts) for r in rounds),
        "counts": counts(rounds),
        "signals": agreement_summary(rounds, bootstrap),
        "calibration": calibration_summary(rounds, bootstrap),
        "consistency": consistency_summary(rounds, bootstrap),
        "by_round": by_round(labelled, bootstrap),
        "by_length": by_length(labelled, bootstrap),
        "by_kind": by_kind(labelled, bootstrap),
        "cost": cost_summary(stats, asked=asked, seconds=seconds),
        "bootstrap": resamples,
    }


def cost_summary(stats: Mapping[str, float], *, asked: int, seconds: float) -> dict[str, Any]:
    """``seconds`` of the audit; ``rounds`` asked, repeats one by one; ``total`` and ``a_round`` of
    calls, tokens, money and ``call_s`` (seconds between question and answer, summed over calls),
    absent for a judge that makes no calls; and how often what else happened (``cache_hits``,
    ``bad_answers``, ``failed_calls``, ``over_budget``).

    >>> cost = cost_summary({"calls": 30.0, "prompt_tokens": 900.0}, asked=20, seconds=5.0)
    >>> cost["a_round"]["calls"], cost["a_round"]["prompt_tokens"], cost["a_round"]["seconds"]
    (1.5, 45.0, 0.25)
    """
    known = {name: float(stats[name]) for name in MODEL_COSTS if name in stats}
    totals = {**known, "seconds": seconds}
    return {
        "rounds": asked,
        "total": totals,
        "a_round": {name: total / asked if asked else 0.0 for name, total in totals.items()},
        **{name: int(stats.get(name, 0)) for name in MODEL_EVENTS},
    }
