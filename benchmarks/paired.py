"""Times two things in turn and writes what came out.

The machine may be shared and noisy: both run in the same process one after the other (A B B A),
and what counts is the median of the ratios of neighbours, with a bootstrap interval.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.summary import machine, package_versions, write_summary

__all__ = ["compare_in_turn", "interval_of_median", "write_benchmark"]

RESULTS = Path(__file__).resolve().parent / "results"
_SEED = 20260414
_RESAMPLES = 4999


def compare_in_turn(
    ours: Callable[[], Any], theirs: Callable[[], Any], *, pairs: int
) -> dict[str, Any]:
    """Seconds of each, and ``ratio``: theirs over ours (above 1: ours is quicker).

    Both are called once unmeasured. ``pairs`` neighbours are measured, in the order A B B A.
    """
    ours(), theirs()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(pairs):
        order = [("ours", ours), ("theirs", theirs)]
        for name, call in order if i % 2 == 0 else reversed(order):
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    ratios = [t / o for o, t in zip(seconds["ours"], seconds["theirs"], strict=True)]
    low, high = interval_of_median(ratios)
    return {
        "pairs": pairs,
        "ours_s": statistics.median(seconds["ours"]),
        "theirs_s": statistics.median(seconds["theirs"]),
        "ratio": {"median": statistics.median(ratios), "low": low, "high": high},
    }


def write_benchmark(name: str, content: Mapping[str, Any]) -> Path:
    """``benchmarks/results/NAME.json`` with the machine and versions, whole or not at all."""
    path = RESULTS / f"{name}.json"
    write_summary(path, {**content, "machine": machine(), "versions": package_versions()})
    return path


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval."""
    rng = np.random.default_rng(_SEED)
    drawn = np.array(values)[rng.integers(0, len(values), (_RESAMPLES, len(values)))]
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)
