"""The record of a run: one ``StepRecord`` a train step, one JSON line each.

``RunMeter`` turns what the driver says of a step into a record and keeps the run's totals;
``MetricLog`` appends records to ``metrics.jsonl`` and ``read_metrics`` reads them back.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.atomic import needed
from pipeline.metrics import (
    METRICS,
    judge_metrics,
    staleness_counts,
    staleness_metrics,
    trajectory_metrics,
)

if TYPE_CHECKING:
    from pipeline.driver import StepResult
    from pipeline.pools import PublishReport

__all__ = ["MetricLog", "RunMeter", "StepRecord", "read_metrics"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """The metrics of one train step.

    ``version`` is the weight version after the step's publish; ``elapsed_s`` the time since
    training began; ``staleness_tokens`` the trained tokens by staleness.
    """

    step: int
    version: int
    elapsed_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    staleness_tokens: Mapping[int, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line, numbers that are not finite as ``null``."""
        row: dict[str, Any] = {
            "step": self.step,
            "version": self.version,
            "elapsed_s": round(self.elapsed_s, 3),
            "staleness_tokens": dict(sorted(self.staleness_tokens.items())),
        }
        for name, value in sorted(self.metrics.items()):
            row[name] = float(value) if math.isfinite(value) else None
        return json.dumps(row)

    @classmethod
    def from_json(cls, line: str) -> StepRecord:
        """The inverse of ``to_json``; ``null`` becomes NaN."""
        row = json.loads(line)
        head = {name: row.pop(name) for name in ("step", "version", "elapsed_s")}
        ages = {int(age): int(n) for age, n in row.pop("staleness_tokens", {}).items()}
        metrics = {name: math.nan if v is None else float(v) for name, v in row.items()}
        return cls(**head, metrics=metrics, staleness_tokens=ages)


class RunMeter:
    """Measures every step of a run and adds up what the summary needs.

    ``staleness_tokens`` counts the trained tokens by staleness; ``num_trajectories`` those
    that finished; ``trained_tokens`` the policy tokens of all train steps. ``records`` are those of
    the steps that a resumed run has behind it.
    """

    def __init__(self, records: Sequence[StepRecord] = ()) -> None:
        self.records: list[StepRecord] = []
        self.staleness_tokens: Counter[int] = Counter()
        self.num_trajectories = 0
        self._filtered = self._failed = 0
        for record in records:
            self.add(record)

    def add(self, record: StepRecord) -> None:
        """A step more."""
        self.records.append(record)
        self.staleness_tokens.update(record.staleness_tokens)
        metrics = record.metrics
        finished = metrics["rollout/trajectories_per_s"] * metrics["step/seconds"]
        self.num_trajectories += round(finished)
        self._filtered += round(metrics["buffer/filtered"])
        self._failed += round(metrics["buffer/failed"])

    @property
    def trained_tokens(self) -> int:
        """Policy tokens of all train steps so far."""
        return sum(self.staleness_tokens.values())

    @property
    def last_step(self) -> int:
        """The last finished step; 0 for none."""
        return self.records[-1].step if self.records else 0

    @property
    def elapsed_s(self) -> float:
        """Training time up to the last finished step."""
        return self.records[-1].elapsed_s if self.records else 0.0

    def step(self, result: StepResult) -> StepRecord:
        """The record of a step that the driver finished, added to the others."""
        record = self.record_of(result)
        self.add(record)
        return record

    def record_of(self, result: StepResult) -> StepRecord:
        """The record of the step after those there are."""
        finished = [t for group in result.finished for t in group.trajectories]
        trained = [t for group in result.groups for t in group.trajectories]
        ages = staleness_counts(trained, result.start_version)
        return StepRecord(
            step=result.step,
            version=result.publish.version,
            elapsed_s=result.elapsed_s,
            metrics={
                **trajectory_metrics(finished),
                **staleness_metrics(ages),
                **self._buffer(result),
                **judge_metrics(trained),
                **_credit(result),
                **_named("learner", result.learner),
                **_publish(result.publish),
                "rollout/trajectories_per_s": len(finished) / max(result.step_s, 1e-9),
                "rollout/aborted": float(sum(g.aborted for g in result.finished)),
                "judge/wasted_rounds": float(result.wasted_verdicts),
                "judge/wait_s": result.judge_wait_s,
                **result.judge,
                "learner/wait_s": result.wait_s,
                "step/seconds": result.step_s,
            },
            staleness_tokens=ages,
        )

    def _buffer(self, result: StepResult) -> dict[str, float]:
        return {
            "buffer/filtered": float(result.counts.filtered - self._filtered),
            "buffer/failed": float(result.counts.failed - self._failed),
            "buffer/failed_trajectories": float(sum(len(g.errors) for g in result.finished)),
            "buffer/in_flight": float(result.counts.in_flight),
            "buffer/depth": float(result.depth),
            "buffer/wait_s": result.buffer_wait_s,
            "buffer/skipped": float(result.skipped),
        }


def _credit(result: StepResult) -> dict[str, float]:
    """Means over the mini-batches that measured them; failed verdicts are added up."""
    values: dict[str, list[float]] = {}
    for credit in result.credits:
        for name, value in credit.metrics.items():
            values.setdefault(name, []).append(value)
    metrics = {name: sum(v) / len(v) for name, v in values.items()}
    failures = sum(values.get("verdict_failures", ()))
    if "verdict_failures" in metrics:
        metrics["verdict_failures"] = failures
    return {**_named("credit", metrics), "judge/failures": failures}


def _publish(report: PublishReport) -> dict[str, float]:
    return {
        "publish/seconds": report.seconds,
        "publish/stall_s": report.stall_s,
        "publish/probe_error": report.probe_error,
    }


def _named(family: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """``{"loss": 1}`` as ``{"learner/loss": 1}``; names with a family keep theirs."""
    return {n if "/" in n else f"{family}/{n}": v for n, v in metrics.items()}


class MetricLog:
    """Appends one JSON line a step to ``metrics.jsonl``, on the disk's way at once.

    A name that is not in ``METRICS`` is recorded all the same, with one warning.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        _cut_torn_line(path)
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._unknown: set[str] = set()

    def append(self, record: StepRecord) -> None:
        """Write one record and flush it. Raises GleanerError where it cannot be written."""
        for name in sorted(set(record.metrics) - METRICS.keys() - self._unknown):
            self._unknown.add(name)
            log.warning("metric %r is not documented in pipeline.metrics.METRICS", name)
        with needed("the metrics", self._path):
            self._file.write(record.to_json() + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what `append` could not write, and told
            self._file.close()


def read_metrics(path: Path) -> list[StepRecord]:
    """All whole lines of a ``metrics.jsonl``; the torn last line of a crash is left out."""
    text = path.read_text(encoding="utf-8")
    whole, _, _ = text.rpartition("\n")
    return [StepRecord.from_json(line) for line in whole.splitlines()]


def _cut_torn_line(path: Path) -> None:
    """Cut what a crash left after the last newline."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
