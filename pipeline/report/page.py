"""Puts the page together: the template, its formats, and one atomic write.

Everything that comes from questions, passages or the policy is untrusted: the template
escapes all of it, and only the pictures that charts.py drew are marked safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import write_text
from pipeline.report import charts
from pipeline.report.curves import Curve, learning_curves
from pipeline.report.data import ReportData
from pipeline.report.episodes import question_views
from pipeline.report.tables import (
    before_after_rows,
    headline,
    hop_points,
    judge_rows,
    pool_shares,
)
from pipeline.report.templating import page_environment

__all__ = ["render_report", "write_report"]


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to ``path``: one file, no requests, whole or not at all."""
    write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The page as HTML."""
    return page_environment().get_template("report.html.j2").render(_view(data))


def _view(data: ReportData) -> dict[str, Any]:
    summary = data.summary
    greedy, sampled = summary.get("greedy", {}), summary.get("sampled", {})
    rows = before_after_rows(data.before, data.after, greedy.get("before"), greedy.get("after"))
    sampled_rows = before_after_rows(
        data.before_sampled, data.after_sampled, sampled.get("before"), sampled.get("after")
    )
    shares = pool_shares(data.pools, data.train_s)
    return {
        "title": describe_run(summary),
        "summary": summary,
        "headline": headline(summary),
        "evaluated": greedy.get("after") or greedy.get("before"),
        "sampled": sampled.get("after") or sampled.get("before"),
        "rows": rows,
        "sampled_rows": sampled_rows,
        "hops_svg": _safe(charts.hop_intervals(hop_points(rows))),
        "sampled_hops_svg": _safe(charts.hop_intervals(hop_points(sampled_rows))),
        "curves": [Curve(c.title, c.caption, _safe(c.svg)) for c in learning_curves(data.records)],
        "pools_svg": _safe(charts.pool_bars(shares)),
        "pools": [(pool, shares[i][1]) for i, pool in enumerate(data.pools)],
        "train_s": data.train_s,
        "staleness_svg": _safe(charts.staleness_bars(data.staleness_tokens)),
        "judge_rows": judge_rows(summary.get("judge")),
        "algorithm": data.algorithm,
        "signal": "joint" if data.algorithm is None else data.algorithm.config.signal,
        "questions": question_views(data.shown, data.algorithm),
        "num_shown": len(data.shown),
        "num_judged_for_report": sum(s.judged_for_report for s in data.shown),
        "config_yaml": data.config_yaml,
        "trace": data.trace,
        "versions": dict(data.versions) or summary.get("versions", {}),
        "machine": summary.get("machine", {}),
    }


def _safe(svg: str) -> Any:
    """Mark a picture of our own as HTML."""
    from markupsafe import Markup

    return Markup(svg)


def describe_run(summary: Mapping[str, Any]) -> str:
    """Algorithm, steps and time in a few words, for the page's title.

    >>> describe_run({"algorithm": "cw_grpo", "steps": 30, "seed": 0})
    'cw_grpo, 30 steps, seed 0'
    """
    return f"{summary['algorithm']}, {summary['steps']} steps, seed {summary['seed']}"
