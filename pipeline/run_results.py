"""What a training run finds out, collected while it goes on, and written when it is over."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import GleanerConfig
from pipeline.credit import TrajectoryCredit, build_algorithm
from pipeline.driver import StepResult
from pipeline.judging.costs import judge_costs
from pipeline.measure import Measured
from pipeline.progress import Progress
from pipeline.run_directory import config_yaml
from pipeline.step_record import RunMeter, StepRecord
from pipeline.summary import (
    build_summary,
    package_versions,
    sensitivity_summary,
    write_summary,
)
from pipeline.types import Trajectory

__all__ = ["TRACE", "RunResults"]

TRACE = "trace.json"
_SHOWN_FROM_TRAINING = 256  # latest trained trajectories that the report may choose from


@dataclass(slots=True)
class RunResults:
    """What a run has found so far. After a resumption the metrics are those of the whole run, the
    trained trajectories, pool times, the judge's totals and trace those since then."""

    before: Measured | None = None
    after: Measured | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    meter: RunMeter = field(default_factory=RunMeter)
    trained: list[Trajectory] = field(default_factory=list)
    credits: list[TrajectoryCredit] = field(default_factory=list)  # of ``trained``
    pools: list[Any] = field(default_factory=list)
    judge: dict[str, float] = field(default_factory=dict)  # totals of training
    earlier_steps: int = 0  # before a resumption
    earlier_trajectories: int = 0  # played before it
    shown: list[Any] = field(default_factory=list)

    @asynccontextmanager
    async def timed(self, phase: str) -> AsyncIterator[None]:
        """Add the block's wall time to ``seconds[phase]``."""
        began = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began

    def go_on_from(self, records: Sequence[StepRecord]) -> None:
        """Take over the steps that a resumed run has behind it."""
        self.meter = RunMeter(records)
        self.earlier_steps = len(records)
        self.earlier_trajectories = self.meter.num_trajectories

    def remember(self, step: StepResult) -> None:
        """Keep the latest trained trajectories, with their credit."""
        self.trained += [t for group in step.groups for t in group.trajectories]
        self.credits += [c for result in step.credits for c in result.trajectories]
        del self.trained[:-_SHOWN_FROM_TRAINING], self.credits[:-_SHOWN_FROM_TRAINING]

    def write(self, config: GleanerConfig, run_dir: Path) -> None:
        """``summary.json``, and ``report.html`` where that is asked for."""
        meter = self.meter
        algorithm = build_algorithm(config.algorithm, config.correction)
        evaluations: dict[str, Any] = {
            "before": self.before.main if self.before else None,
            "after": self.after.main if self.after else None,
            "before_sampled": self.before.sampled if self.before else None,
            "after_sampled": self.after.sampled if self.after else None,
        }
        summary = build_summary(
            profile=config.profile,
            algorithm=config.algorithm.name,
            seed=config.trainer.seed,
            steps=meter.last_step,
            seconds=self.seconds,
            staleness_tokens=meter.staleness_tokens,
            trained_tokens=meter.trained_tokens,
            trajectories_per_s=meter.num_trajectories / meter.elapsed_s if meter.elapsed_s else 0.0,
            sensitivity=sensitivity_summary(algorithm, self.credits),
            judge=self._judge_costs(),
            **evaluations,
        )
        write_summary(run_dir / "summary.json", summary)
        if not config.report.enabled:
            return
        from pipeline.report import ReportData, write_report

        data = ReportData(
            summary=summary,
            algorithm=algorithm,
            records=meter.records,
            shown=self.shown,
            pools=self.pools,
            train_s=meter.elapsed_s,
            staleness_tokens=meter.staleness_tokens,
            config_yaml=config_yaml(config),
            versions=package_versions(),
            trace=TRACE if (run_dir / TRACE).exists() else "",
            **evaluations,
        )
        write_report(run_dir / "report.html", data)

    def _judge_costs(self) -> dict[str, Any] | None:
        """Of this life: totals and trajectories since the resumption, if there was one."""
        if not self.judge:
            return None
        records = self.meter.records[self.earlier_steps :]
        waited_s = sum(r.metrics.get("judge/wait_s", 0.0) for r in records)
        trajectories = self.meter.num_trajectories - self.earlier_trajectories
        return judge_costs({**self.judge, "wait_s": waited_s}, trajectories)

    def say_where(self, run_dir: Path, progress: Progress) -> None:
        """The scores, and where everything is."""
        for name, measured in (("before", self.before), ("after", self.after)):
            if measured:
                flat = measured.main.flat()
                right = sum(t.correct for t in flat)
                progress.line(f"exact match {name}: {right / len(flat):.1%} of {len(flat)}")
        progress.line(f"trained policy: {run_dir / 'policy'}")
        progress.line(f"numbers:        {run_dir / 'summary.json'}")
        if (run_dir / "report.html").exists():
            progress.line(f"report:         {run_dir / 'report.html'}")
