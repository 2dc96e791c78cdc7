"""What follows a train step: checkpoint, evaluation, record; and what a death left undone of it.

The record is aside, in ``unrecorded_step.json``, before an evaluation of minutes begins. A run that
died in it takes the record from there when it goes on, and evaluates then: its weights are those of
that step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.atomic import needed, write_text
from pipeline.checkpoint import CheckpointStore
from pipeline.driver import StepResult
from pipeline.pools import Learner
from pipeline.progress import Training
from pipeline.step_record import RunMeter, StepRecord
from pipeline.tracking import Tracker

__all__ = ["StepRecorder", "read_unrecorded"]

_UNRECORDED = "unrecorded_step.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecorder:
    """``evaluate`` gives the ``evaluate/`` metrics after a step, None where none are due."""

    run_dir: Path
    meter: RunMeter
    trackers: Tracker
    training: Training
    evaluate: Callable[[int], Awaitable[Mapping[str, float] | None]]
    checkpoints: CheckpointStore
    learner: Learner

    async def after_step(self, result: StepResult) -> None:
        """Save and evaluate where it is due, and record the step."""
        record = self.meter.record_of(result)
        path = self.run_dir / _UNRECORDED
        with needed("the step's record", path):
            write_text(path, record.to_json())
        if self.checkpoints.is_due(record.step):
            await self.checkpoints.save(self.learner, record.step)
        await self.record(record)

    async def record(self, record: StepRecord) -> None:
        """Evaluate the policy after the step, where it is due, and record it."""
        evaluated = await self.evaluate(record.step)
        if evaluated:
            record = replace(record, metrics={**record.metrics, **evaluated})
            score = evaluated["evaluate/exact_match"]
            if self.checkpoints.is_best(score):
                await self.checkpoints.save(self.learner, record.step, score)
        self.meter.add(record)
        self.trackers.append(record)
        self.training.record(record)


def read_unrecorded(run_dir: Path) -> StepRecord | None:
    """The record, without an evaluation, of the latest step that was made in ``run_dir``."""
    path = run_dir / _UNRECORDED
    return StepRecord.from_json(path.read_text(encoding="utf-8")) if path.exists() else None
