"""The before/after tables, the headline and the pools' shares of time, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.judging.costs import asked_a_model
from pipeline.report.charts import Interval
from pipeline.report.data import PoolTime
from pipeline.summary import em_change, redundant_change

if TYPE_CHECKING:
    from pipeline.evaluation import Evaluation

__all__ = [
    "Headline",
    "JudgeRow",
    "Row",
    "before_after_rows",
    "headline",
    "hop_points",
    "judge_rows",
    "pool_shares",
]

ALL = "All questions"
Numbers = Mapping[str, Any]  # an Estimate's {value, low, high, n}


@dataclass(frozen=True, slots=True)
class Row:
    """One line: the same measure before and after, and its paired change where it has one."""

    label: str
    questions: int | None
    before: Numbers | None
    after: Numbers | None
    change: Numbers | None
    kind: str = "share"  # share (shown in per cent) | number
    good: int = 1  # +1: more is better, -1: less is better, 0: neither


@dataclass(frozen=True, slots=True)
class Headline:
    """The result in a sentence. ``verdict`` is "rose", "fell", "unclear" or "unmeasured"."""

    verdict: str
    before: Numbers | None
    after: Numbers | None
    rise: Numbers | None


def headline(summary: Mapping[str, Any]) -> Headline:
    """Rose or fell only where the 95 % interval of the paired rise leaves out zero."""
    em = summary["em"]
    rise = em.get("rise")
    if rise is None or rise["value"] is None:
        return Headline("unmeasured", em.get("before"), em.get("after"), None)
    verdict = "rose" if rise["low"] > 0 else "fell" if rise["high"] < 0 else "unclear"
    return Headline(verdict, em["before"], em["after"], rise)


def before_after_rows(
    before: Evaluation | None,
    after: Evaluation | None,
    before_numbers: Numbers | None,
    after_numbers: Numbers | None,
) -> list[Row]:
    """Exact match overall and per number of hops, then how the agent searches.

    ``*_numbers`` are the evaluations' parts of the summary; changes are paired by question.
    """
    first, last = before_numbers or {}, after_numbers or {}
    rows = [_em_row(ALL, None, before, after, first.get("em"), last.get("em"))]
    hops = sorted({*first.get("em_by_hops", {}), *last.get("em_by_hops", {})}, key=int)
    for hop in hops:
        label = f"{hop} hop" if hop == "1" else f"{hop} hops"
        values = [n.get("em_by_hops", {}).get(hop) for n in (first, last)]
        rows.append(_em_row(label, int(hop), before, after, *values))
    if "pass_at_k" in first or "pass_at_k" in last:
        pass_first, pass_last = first.get("pass_at_k"), last.get("pass_at_k")
        k = (pass_first or pass_last or {}).get("k")
        rows.append(
            Row(f"At least one of {k} tries right (pass@{k})", None, pass_first, pass_last, None)
        )
    change = redundant_change(before, after)
    pair = (first.get("redundant_searches"), last.get("redundant_searches"))
    rows.append(Row("Redundant searches", None, *pair, change, good=-1))
    pair = (first.get("evidence_recall"), last.get("evidence_recall"))
    rows.append(Row("Evidence passages found", None, *pair, None))
    for key, label, kind, good in (
        ("no_answer", "No answer given", "share", -1),
        ("searches_per_question", "Searches per question", "number", 0),
        ("tokens_per_trajectory", "Tokens written per question", "number", 0),
    ):
        pair = (_bare(first.get(key)), _bare(last.get(key)))
        rows.append(Row(label, None, *pair, None, kind, good))
    return [r for r in rows if _known(r.before) or _known(r.after)]


def hop_points(rows: Sequence[Row]) -> list[Interval]:
    """The exact-match rows as points with intervals."""
    return [
        Interval(row.label, phase, n["value"], n["low"], n["high"])
        for row in rows
        if row.questions is not None
        for phase, n in (("before", row.before), ("after", row.after))
        if n is not None and n["value"] is not None
    ]


@dataclass(frozen=True, slots=True)
class JudgeRow:
    """One line of what judging cost; ``None`` where that cannot be told."""

    label: str
    total: float | None
    per_round: float | None = None
    per_1000_trajectories: float | None = None
    unit: str = ""  # "s": a time
    is_cost: bool = False  # else a count, which is not shared out


def judge_rows(costs: Numbers | None) -> list[JudgeRow]:
    """The lines of ``pipeline.judging.costs.judge_costs``; none where no model was asked."""
    if costs is None or not asked_a_model(costs):
        return []
    a_round = costs["per_round"] or {}
    a_thousand = costs["per_1000_trajectories"] or {}
    rows = [JudgeRow("Rounds with a verdict", costs["rounds"] - costs["failures"])]
    rows += [
        JudgeRow(label, costs[name], a_round.get(name), a_thousand.get(name), unit, True)
        for name, label, unit in (
            ("calls", "Calls that a model answered", ""),
            ("prompt_tokens", "Prompt tokens", ""),
            ("completion_tokens", "Answer tokens", ""),
            ("money", "Money, by the prices that are set", ""),
            ("call_s", "Between question and answer", "s"),
            ("busy_s", "The pool's busy time", "s"),
            ("wait_s", "The learner waited for judges alone", "s"),
        )
    ]
    rows += [
        JudgeRow(label, costs[name])
        for name, label in (
            ("cached_tokens", "Prompt tokens out of the model's cache"),
            ("cache_hits", "Verdicts that were known already"),
            ("failures", "Rounds without a verdict"),
            ("bad_answers", "Answers that were no verdict"),
            ("failed_calls", "Calls that failed"),
            ("over_budget", "Calls not made: the budget was spent"),
        )
        if costs[name]
    ]
    return rows


def pool_shares(pools: Sequence[PoolTime], train_s: float) -> list[tuple[str, dict[str, float]]]:
    """Of each pool: shares of the training time that it was busy, waiting and idle.

    A pool of two actors has twice the training time to spend.
    """
    rows = []
    for pool in pools:
        total = max(train_s * pool.num_actors, pool.busy_s + pool.waiting_s, 1e-9)
        idle = total - pool.busy_s - pool.waiting_s
        shares = {
            "busy": pool.busy_s / total,
            "waiting for another pool": pool.waiting_s / total,
            "idle": idle / total,
        }
        rows.append((pool.name, shares))
    return rows


def _em_row(
    label: str,
    hops: int | None,
    before: Evaluation | None,
    after: Evaluation | None,
    first: Numbers | None,
    last: Numbers | None,
) -> Row:
    known = last or first
    change = em_change(before, after, hops)
    return Row(label, known["n"] if known else 0, first, last, change)


def _bare(value: float | None) -> Numbers | None:
    """A number without an interval."""
    return None if value is None else {"value": value, "low": None, "high": None, "n": None}


def _known(numbers: Numbers | None) -> bool:
    return numbers is not None and numbers.get("value") is not None
