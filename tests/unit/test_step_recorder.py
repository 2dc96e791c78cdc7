"""What follows a train step is recorded, also where the run dies in the middle of it."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.buffer import BufferCounts
from pipeline.config import CheckpointConfig
from pipeline.errors import GleanerError
from pipeline.step_record import RunMeter, StepRecord
from pipeline.step_recorder import StepRecorder, read_unrecorded
from tests.unit.test_metrics_step_record import step_result


@dataclass
class Log:
    """A tracker, a progress display and checkpoints that remember what they were told."""

    config: CheckpointConfig = field(default_factory=CheckpointConfig)
    appended: list[StepRecord] = field(default_factory=list)
    shown: list[StepRecord] = field(default_factory=list)
    saved: list[tuple[int, float | None]] = field(default_factory=list)

    def append(self, record: StepRecord) -> None:
        self.appended.append(record)

    def record(self, record: StepRecord) -> None:
        self.shown.append(record)

    def is_due(self, step: int) -> bool:
        return step == 2

    def is_best(self, score: float) -> bool:
        return score > 0.5

    async def save(self, learner: Any, step: int, score: float | None = None) -> None:
        self.saved.append((step, score))

    def close(self) -> None: ...


def recorder(run_dir: Path, log: Log, evaluation: Mapping[str, float] | None) -> StepRecorder:
    async def evaluate(step: int) -> Mapping[str, float] | None:
        if evaluation == {}:
            raise RuntimeError("dies in the evaluation")
        return evaluation

    stub = cast("Any", log)
    return StepRecorder(
        run_dir=run_dir, meter=RunMeter(), trackers=stub, training=stub, evaluate=evaluate,
        checkpoints=stub, learner=cast("Any", None),
    )  # fmt: skip


async def test_a_step_is_saved_evaluated_and_recorded(tmp_path: Path) -> None:
    log = Log()
    found = recorder(tmp_path, log, {"evaluate/exact_match": 0.75})
    await found.after_step(step_result(2, BufferCounts()))
    (record,) = log.appended
    assert record.metrics["evaluate/exact_match"] == 0.75
    assert log.saved == [(2, None), (2, 0.75)]
    assert log.shown == found.meter.records == [record]


async def test_on_a_full_disk_the_run_ends_with_the_file_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.step_recorder.write_text", full)
    with pytest.raises(
        GleanerError, match=r"unrecorded_step\.json cannot be written \(.*No space left.*make room"
    ):
        await recorder(tmp_path, Log(), None).after_step(step_result(1, BufferCounts()))


async def test_without_an_evaluation_that_is_due_there_is_just_the_record(tmp_path: Path) -> None:
    log = Log()
    await recorder(tmp_path, log, None).after_step(step_result(1, BufferCounts()))
    assert [r.step for r in log.appended] == [1]
    assert log.saved == []


async def test_a_run_that_dies_in_the_evaluation_makes_up_for_it_when_it_goes_on(
    tmp_path: Path,
) -> None:
    first, second = Log(), Log()
    with pytest.raises(RuntimeError):
        await recorder(tmp_path, first, {}).after_step(
            step_result(3, BufferCounts(admitted=9, filtered=2))
        )
    assert first.appended == []
    left = read_unrecorded(tmp_path)
    assert left is not None and (left.step, left.metrics["buffer/filtered"]) == (3, 2.0)
    resumed = recorder(tmp_path, second, {"evaluate/exact_match": 0.25})
    await resumed.record(left)
    (record,) = second.appended
    assert record.metrics == {**left.metrics, "evaluate/exact_match": 0.25}
    assert resumed.meter.num_trajectories == 2
