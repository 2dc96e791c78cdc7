"""Pictures of an audit: the reliability diagram, and agreement by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.charts import (
    MUTED,
    SERIES_COLOURS,
    _figure,
    _legend,
    _percent_axis,
    _svg,
    _whole_steps,
)

__all__ = ["agreement_by_round", "reliability"]

_LABELS = {"utility": "utility u", "correctness": "correctness v", "contribution": "product p"}
_SHIFTS = (-0.09, 0.0, 0.09)  # of the signals' points, so that intervals stand side by side


def reliability(calibration: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Share of label 1 over the judge's confidence, a dot a bin, its area by the bin's rounds; on
    the diagonal a judge is calibrated. "" without calibration or without a bin."""
    if calibration is None or not any(found["bins"] for found in calibration.values()):
        return ""
    figure, axes = _figure(3.6, 3.2)
    axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.0)
    for colour, (signal, found) in zip(SERIES_COLOURS, calibration.items(), strict=False):
        bins = found["bins"]
        x, y = [b["confidence"] for b in bins], [b["label_share"] for b in bins]
        areas = [12 + 140 * b["rounds"] / max(1, found["rounds"]) for b in bins]
        axes.plot(x, y, color=colour, linewidth=1.2, label=_LABELS[signal])
        axes.scatter(x, y, s=areas, color=colour, alpha=0.8, linewidths=0)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("confidence: mean over repeats")
    axes.set_ylabel("share of label 1")
    _legend(figure, ncols=3)
    return _svg(figure)


def agreement_by_round(entries: Sequence[Mapping[str, Any]]) -> str:
    """Agreement with the labels by round number, with 95 % intervals; "" without rounds."""
    entries = [e for e in entries if e["utility"]["agreement"]["value"] is not None]
    if not entries:
        return ""
    figure, axes = _figure(4.2, 3.2)
    lowest = 1.0
    for colour, shift, (signal, label) in zip(
        SERIES_COLOURS, _SHIFTS, _LABELS.items(), strict=True
    ):
        found = [e[signal]["agreement"] for e in entries]
        x = [e["round"] + shift for e in entries]
        axes.plot(x, [f["value"] for f in found], "o-", color=colour, linewidth=1.4, markersize=4.5,
                  label=label)  # fmt: skip
        for place, f in zip(x, found, strict=True):
            lowest = min(lowest, f["value"])
            if f["low"] is not None:
                axes.plot([place, place], [f["low"], f["high"]], color=colour, linewidth=1.4)
                lowest = min(lowest, f["low"])
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    axes.set_xlim(entries[0]["round"] - 0.5, entries[-1]["round"] + 0.5)
    axes.grid(axis="x", visible=False)
    _percent_axis(axes.yaxis)
    _whole_steps(axes)
    axes.set_xlabel("round")
    _legend(figure, ncols=3)
    return _svg(figure)
