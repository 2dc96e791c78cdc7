"""A comparison for people: a Markdown table, and learning curves with bands.

Legend: ``_NT`` seeds by train steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compare.analyse import group_by_arm
from pipeline.compare.result import RunResult

__all__ = ["draw", "table"]

_COLUMNS = {  # measure -> heading, factor, decimals
    "exact_match": ("exact match, mean of 3 checkpoints, %", 100, 1),
    "last_exact_match": ("last checkpoint, %", 100, 1),
    "exact_match_at_equal_tokens": ("at equal tokens, %", 100, 1),
    "exact_match_at_equal_seconds": ("at equal time, %", 100, 1),
    "redundant_searches": ("redundant searches, %", 100, 2),
    "searches_per_question": ("searches a question", 1, 2),
    "steps_to_score": ("steps to the score", 1, 1),
    "reached_score": ("reached it, %", 100, 0),
}
_PANELS = {  # (rows, metric) -> title, factor
    ("checkpoints", "exact_match"): ("Exact match on the evaluated split, %", 100),
    ("checkpoints", "redundant_searches"): ("Redundant searches there, %", 100),
    ("curve", "reward/exact_match"): ("Exact match of training rollouts, %", 100),
    ("curve", "credit/contribution_concentration"): (
        "Largest share of one round in a success (training)",
        1,
    ),
}
_FEW = 5  # points that are marked
_COLOURS = (
    *("#1f6fd6", "#d9731a", "#2a8c4a", "#8a4fbf", "#b23a48", "#5b6770", "#b59b00", "#00897b"),
    *("#d16ba5", "#7a4b2a"),
)


def table(analysis: Mapping[str, Any]) -> str:
    """Two Markdown tables: every arm, and every arm less the baseline, paired by seed."""
    checkpoints = analysis["checkpoints"]
    columns = {
        name: form
        for name, form in _COLUMNS.items()
        if any(measured[name]["mean"] is not None for measured in analysis["arms"].values())
        and not (name == "last_exact_match" and checkpoints == 1)  # it is the one before
    }
    headings = [_heading(text, checkpoints) for text, _, _ in columns.values()]
    lines = [
        "| arm | seeds | " + " | ".join(headings) + " |",
        "| --- |" + " ---: |" * (len(headings) + 1),
    ]
    for arm, measured in analysis["arms"].items():
        cells = [_cell(measured[name], *form) for name, (_, *form) in columns.items()]
        lines.append(f"| {arm} | {measured['exact_match']['seeds']} | " + " | ".join(cells) + " |")
    if analysis["paired"]:
        lines += [
            "",
            f"Less {analysis['baseline']}, paired by seed (bold: a t-test at 5 % tells it from 0; "
            "in round brackets: the 95 % bootstrap over seeds, which covers 89 % with 8 seeds and "
            "81 % with 4; in square brackets: the difference that so many seeds find with 80 % "
            "power):",
            "",
            "| arm | seeds | " + " | ".join(headings) + " |",
            "| --- |" + " ---: |" * (len(headings) + 1),
        ]
    for arm, differences in analysis["paired"].items():
        cells = [_cell(differences[name], *form, sign=True) for name, (_, *form) in columns.items()]
        lines.append(
            f"| {arm} | {differences['exact_match']['seeds']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def _heading(text: str, checkpoints: int) -> str:
    """
    >>> [_heading("exact match, mean of 3 checkpoints, %", n) for n in (3, 1)]
    ['exact match, mean of 3 checkpoints, %', 'exact match, at the end, %']
    """
    measured = f"mean of {checkpoints} checkpoints" if checkpoints > 1 else "at the end"
    return text.replace("mean of 3 checkpoints", measured)


def draw(results: Sequence[RunResult], path: Path, title: str) -> None:
    """Learning curves against trained tokens: the mean over seeds, and a band from the lowest
    tenth to the highest. Written whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    figure.suptitle(title)
    for axis, ((rows, metric), (heading, factor)) in zip(axes.flat, _PANELS.items(), strict=True):
        for colour, (arm, runs) in zip(_COLOURS * 4, group_by_arm(results).items(), strict=False):
            _curve(axis, arm, [r.content[rows] for r in runs], metric, factor, colour)
        axis.set_title(heading, loc="left", fontsize=10)
        axis.set_xlabel("trained tokens, thousands")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, dpi=120, format=path.suffix.removeprefix("."))
    pyplot.close(figure)
    unfinished.replace(path)


def _curve(
    axis: Any,
    arm: str,
    runs: Sequence[Sequence[Mapping[str, float]]],
    metric: str,
    factor: float,
    colour: str,
) -> None:
    """``runs`` are the rows of each seed."""
    steps = min((len(rows) for rows in runs), default=0)
    values_NT = np.array(
        [[factor * row.get(metric, np.nan) for row in rows[:steps]] for rows in runs]
    )
    if not steps or np.isnan(values_NT).all():
        return
    tokens_T = np.mean([[row["trained_tokens"] for row in rows[:steps]] for rows in runs], axis=0)
    kept_T = ~np.isnan(values_NT).all(axis=0)
    x, shown = tokens_T[kept_T] / 1000, values_NT[:, kept_T]
    label = f"{arm} ({len(runs)} seeds)"
    marker = "o" if steps <= _FEW else None
    axis.plot(x, np.nanmean(shown, axis=0), color=colour, label=label, marker=marker)
    if len(runs) > 1:
        low, high = np.nanquantile(shown, [0.1, 0.9], axis=0)
        if len(x) == 1:  # a band has no width there
            axis.vlines(x, low, high, color=colour, alpha=0.5)
        else:
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _cell(value: Mapping[str, Any], factor: float, decimals: int, *, sign: bool = False) -> str:
    if value["mean"] is None:
        return "–"
    form = f"{{:{'+' if sign else ''}.{decimals}f}}"
    mean = form.format(factor * value["mean"])
    if value["low"] is None:
        return mean
    low, high = (form.format(factor * value[key]) for key in ("low", "high"))
    detectable = value.get("smallest_detectable")
    power = f" [{factor * detectable:.{decimals}f}]" if detectable is not None else ""
    sure = "**" if sign and (value["t_low"] > 0 or value["t_high"] < 0) else ""
    return f"{sure}{mean}{sure} ({low} to {high}){power}"
