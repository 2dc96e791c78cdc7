"""The page's pictures: inline SVG by matplotlib, coloured by the page's CSS variables.

Matplotlib draws with placeholder colours that are then replaced by ``var(--...)``, so that one
picture reads well on a light and on a dark page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Interval", "Series", "hop_intervals", "line_chart", "pool_bars", "staleness_bars"]

_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--grid)",
    "#0a0a01": "var(--c1)",
    "#0a0a02": "var(--c2)",
    "#0a0a03": "var(--c3)",
}
INK, MUTED, GRID, C1, C2, C3 = _COLOURS
SERIES_COLOURS = (C1, C2, C3)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gleaner",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: ``points`` are (step, value), NaN where not measured."""

    label: str
    points: Sequence[tuple[float, float]]
    marker: bool = False  # measured at a few steps only: dots, no smoothing
    smooth: bool = True


@dataclass(frozen=True, slots=True)
class Interval:
    """A point with its 95 % interval, in a row of the before/after picture."""

    row: str
    phase: str  # "before" or "after"
    value: float
    low: float
    high: float


def line_chart(
    series: Sequence[Series], *, percent: bool = False, floor: float | None = None
) -> str:
    """Curves over train steps: the measured values pale, their running mean strong."""
    figure, axes = _figure(4.0, 2.4)
    for colour, curve in zip(SERIES_COLOURS, series, strict=False):
        points = [(x, y) for x, y in curve.points if math.isfinite(y)]
        if not points:
            continue
        x, y = [p[0] for p in points], [p[1] for p in points]
        if curve.marker:
            axes.plot(x, y, "o-", color=colour, linewidth=1.6, markersize=4.5, label=curve.label)
            continue
        if curve.smooth and len(y) >= 8:
            smooth = running_mean(y, window=len(y) // 8)
            axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.35)
            axes.plot(x, smooth, color=colour, linewidth=2.0, label=curve.label)
        else:
            dots = "o-" if len(y) < 8 else "-"
            axes.plot(x, y, dots, color=colour, linewidth=1.8, markersize=3.5, label=curve.label)
    if floor is not None:
        axes.set_ylim(bottom=floor)
    if percent:
        _percent_axis(axes.yaxis)
    axes.grid(axis="x", visible=False)
    _whole_steps(axes)
    axes.set_xlabel("train step")
    if len(series) > 1:
        _legend(figure, ncols=3)
    return _svg(figure)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over ``2 * window + 1`` values, fewer at the ends.

    >>> running_mean([0.0, 3.0, 6.0, 0.0], window=1)
    [1.5, 3.0, 3.0, 3.0]
    """
    near = [values[max(0, i - window) : i + window + 1] for i in range(len(values))]
    return [sum(n) / len(n) for n in near]


def hop_intervals(intervals: Sequence[Interval]) -> str:
    """One row a number of hops, before and after as dots with their intervals; "" without rows."""
    if not intervals:
        return ""
    rows = list(dict.fromkeys(i.row for i in intervals))
    figure, axes = _figure(3.4, 0.8 + 0.55 * len(rows))
    for i in intervals:
        after = i.phase == "after"
        y = rows.index(i.row) + (0.14 if after else -0.14)
        colour = C1 if after else C2
        axes.plot([i.low, i.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([i.value], [y], "o" if after else "s", color=colour, markersize=6)
    for label, colour, marker in (("before", C2, "s"), ("after", C1, "o")):
        axes.plot([], [], marker, color=colour, label=f"{label} training")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", colors=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    _percent_axis(axes.xaxis)
    _legend(figure, ncols=2)
    return _svg(figure)


def pool_bars(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Stacked bars of shares of the training time, a row a pool; "" without rows."""
    if not rows:
        return ""
    figure, axes = _figure(5.4, 0.8 + 0.42 * len(rows))
    colours = {"busy": C1, "waiting for another pool": C2, "idle": GRID}
    for y, (_, shares) in enumerate(rows):
        left = 0.0
        for kind, colour in colours.items():
            share = shares.get(kind, 0.0)
            axes.barh(y, share, left=left, color=colour, height=0.62)
            if share >= 0.08:
                ink = MUTED if kind == "idle" else "#ffffff"
                axes.text(
                    left + share / 2, y, f"{share:.0%}", ha="center", va="center", color=ink, size=9
                )
            left += share
    for kind, colour in colours.items():
        axes.barh(0, 0, color=colour, label=kind)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", colors=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max([1.0, *(sum(s.values()) for _, s in rows)]))
    axes.grid(axis="y", visible=False)
    _percent_axis(axes.xaxis)
    _legend(figure, ncols=3)
    return _svg(figure)


def staleness_bars(tokens: Mapping[int, int]) -> str:
    """Share of the trained tokens by staleness; "" where nothing was trained."""
    if not tokens:
        return ""
    figure, axes = _figure(3.4, 2.5)
    total = sum(tokens.values())
    ages = list(range(max(tokens) + 1))
    shares = [tokens.get(age, 0) / total for age in ages]
    axes.bar(ages, shares, color=C1, width=0.6)
    for age, share in zip(ages, shares, strict=True):
        axes.text(age, share + 0.02, f"{share:.1%}", ha="center", va="bottom", color=INK, size=9)
    axes.set_xticks(ages)
    axes.set_xlim(-0.75, max(ages) + 0.75)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", visible=False)
    _percent_axis(axes.yaxis)
    axes.set_xlabel("staleness in publishes")
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _legend(figure: Any, ncols: int) -> None:
    figure.legend(
        loc="outside upper left",
        ncols=ncols,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _whole_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def _svg(figure: Any) -> str:
    """The figure as an ``<svg>`` element without fixed size, metadata or doctype."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for placeholder, variable in _COLOURS.items():
        svg = svg.replace(placeholder, variable)
    return svg
