"""The page of an audit: how far judge and labels agree, and every kind of disagreement to read.

What it shows of questions, rounds and rationales is untrusted: it is escaped, and characters that
cannot be seen are shown. The page loads nothing and runs no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.atomic import write_text
from pipeline.judging.judged import JudgedRound
from pipeline.report import audit_charts
from pipeline.report.disagreements import disagreements
from pipeline.report.templating import page_environment

__all__ = ["render_audit", "write_audit_page"]

_SIGNALS = {
    "utility": ("u", "retrieval utility"),
    "correctness": ("v", "reasoning correctness"),
    "contribution": ("p", "contribution, u times v"),
}


def write_audit_page(path: Path, summary: Mapping[str, Any], rounds: Sequence[JudgedRound]) -> None:
    """Write the page to ``path``: one file, whole or not at all."""
    write_text(path, render_audit(summary, rounds))


def render_audit(summary: Mapping[str, Any], rounds: Sequence[JudgedRound]) -> str:
    """The page as HTML; ``summary`` is the content of ``audit.json``."""
    from markupsafe import Markup

    return (
        page_environment()
        .get_template("audit.html.j2")
        .render(
            summary=summary,
            signals=_SIGNALS,
            groups=disagreements(rounds),
            reliability_svg=Markup(audit_charts.reliability(summary["calibration"])),
            by_round_svg=Markup(audit_charts.agreement_by_round(summary["by_round"])),
            breakdowns=_breakdowns(summary),
        )
    )


def _breakdowns(summary: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Tables by round, length and kind: a title, then rows of a name and an entry."""
    tables = [
        ("By round", [(f"round {e['round']}", e) for e in summary["by_round"]]),
        (
            "By length of the round",
            [
                (f"{e['chars'][0]:,} to {e['chars'][1]:,} characters", e)
                for e in summary["by_length"]
            ],
        ),
        (
            "By kind of round",
            [(str(e["kind"]).replace("_", " "), e) for e in summary["by_kind"]],
        ),
    ]
    return [(title, rows) for title, rows in tables if rows]
