"""Puts the page together: the template, its formats, and one atomic write.

Everything that comes from questions, passages or the policy is untrusted: the template
escapes all of it, and only the pictures that charts.py drew are marked safe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import write_text
from pipeline.judging.untrusted import visible_text
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

__all__ = ["render_report", "write_report"]

_NOT_MEASURED = "–"
_NBSP = "\u00a0"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to ``path``: one file, no requests, whole or not at all."""
    write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=format_share,
        points=format_points,
        number=format_number,
        signed=format_signed,
        duration=format_seconds,
        amount=format_amount,
        count=lambda n: f"{n:,}",
        visible=visible_text,
    )
    return environment.get_template("report.html.j2").render(_view(data))


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


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def format_share(value: float | None, decimals: int = 1) -> str:
    """
    >>> format_share(0.3456), format_share(None)
    ('34.6\\xa0%', '–')
    """
    return (
        _NOT_MEASURED if value is None or _missing(value) else f"{100 * value:.{decimals}f}{_NBSP}%"
    )


def format_points(value: float | None) -> str:
    """A difference of shares, in points, with its sign (a true minus).

    >>> format_points(0.256), format_points(-0.1)
    ('+25.6', '−10.0')
    """
    return _NOT_MEASURED if value is None or _missing(value) else _sign(f"{100 * value:+.1f}")


def format_number(value: float | None, decimals: int = 2) -> str:
    """
    >>> format_number(2.0), format_number(float("nan"))
    ('2.00', '–')
    """
    return _NOT_MEASURED if value is None or _missing(value) else _sign(f"{value:.{decimals}f}")


def format_amount(value: float | None) -> str:
    """Any size, with about three digits that say something; larger ones whole.

    >>> format_amount(1234567.0), format_amount(4.0), format_amount(4.125), format_amount(0.0000312)
    ('1,234,567', '4', '4.12', '0.0000312')
    """
    if value is None or _missing(value):
        return _NOT_MEASURED
    if value == round(value) or abs(value) >= 100:
        return _sign(f"{value:,.0f}")
    return _sign(f"{value:.{max(2, 2 - math.floor(math.log10(abs(value))))}f}")


def format_signed(value: float | None, decimals: int = 2) -> str:
    """
    >>> format_signed(0.5), format_signed(-0.5), format_signed(0.0)
    ('+0.50', '−0.50', '0.00')
    """
    if value is None or _missing(value):
        return _NOT_MEASURED
    text = f"{value:+.{decimals}f}"
    return _sign(text) if float(text) else f"{0:.{decimals}f}"


def format_seconds(seconds: float | None) -> str:
    """
    >>> format_seconds(7.24), format_seconds(75)
    ('7.2 s', '1 min 15 s')
    """
    from pipeline.progress import format_duration

    return _NOT_MEASURED if seconds is None or _missing(seconds) else format_duration(seconds)


def _sign(text: str) -> str:
    return text.replace("-", "−")


def describe_run(summary: Mapping[str, Any]) -> str:
    """Algorithm, steps and time in a few words, for the page's title.

    >>> describe_run({"algorithm": "cw_grpo", "steps": 30, "seed": 0})
    'cw_grpo, 30 steps, seed 0'
    """
    return f"{summary['algorithm']}, {summary['steps']} steps, seed {summary['seed']}"
