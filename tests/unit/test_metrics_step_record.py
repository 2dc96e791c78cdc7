"""One record a step: what the driver says becomes named numbers, a line each, torn lines cut."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.buffer import BufferCounts
from pipeline.credit.result import CreditResult
from pipeline.driver import StepResult
from pipeline.errors import GleanerError
from pipeline.pools import PublishReport
from pipeline.step_record import MetricLog, RunMeter, StepRecord, read_metrics
from pipeline.types import Group
from tests.support.report_run import episode, question


def step_result(step: int, counts: BufferCounts) -> StepResult:
    # one hop: a search of 12 tokens (made twice by the unskilled one) and an answer of 8
    q = question(1, 1)
    group = Group(
        group_id=step,
        question=q,
        trajectories=(episode(q, sample_id=0), episode(q, sample_id=1, skill=0.1)),
        admission_version=0,
        errors=("engine 0 died",),
    )
    credit = CreditResult(
        samples=(),
        normaliser=1.0,
        trajectories=(),
        metrics={"success_share": 0.5, "verdict_failures": 2.0},
    )
    return StepResult(
        step=step,
        groups=[group],
        credits=[credit, replace(credit, metrics={"success_share": 1.0, "verdict_failures": 1.0})],
        learner={"loss": 0.25, "grad_norm": 1.5},
        publish=PublishReport(
            version=step, digest="d", probe_error=1e-6, seconds=0.2, stall_s=0.05
        ),
        counts=counts,
        depth=3,
        wait_s=2.0,
        buffer_wait_s=1.5,
        step_s=4.0,
        elapsed_s=4.0 * step,
        finished=[group],
    )


def test_a_step_is_measured_by_hand():
    record = RunMeter().step(step_result(2, BufferCounts(admitted=9, trained=2, filtered=3)))
    assert (record.step, record.version, record.elapsed_s) == (2, 2, 8.0)
    for name, value in {
        "reward/mean": 0.5,
        "rollout/trajectories_per_s": 0.5,
        "rollout/tokens_per_trajectory": 26.0,
        "buffer/staleness_mean": 1.0,  # sampled at version 0, trained from version 1
        "buffer/filtered": 3.0,
        "buffer/failed": 0.0,
        "buffer/failed_trajectories": 1.0,
        "buffer/in_flight": 4.0,
        "buffer/depth": 3.0,
        "buffer/wait_s": 1.5,
        "credit/success_share": 0.75,
        "credit/verdict_failures": 3.0,
        "judge/failures": 3.0,
        "learner/loss": 0.25,
        "learner/wait_s": 2.0,
        "publish/stall_s": 0.05,
        "step/seconds": 4.0,
    }.items():
        assert record.metrics[name] == pytest.approx(value), name


def test_dropped_groups_are_counted_since_the_last_step():
    meter = RunMeter()
    meter.step(step_result(1, BufferCounts(admitted=9, filtered=3, failed=1)))
    second = meter.step(step_result(2, BufferCounts(admitted=12, filtered=5, failed=1)))
    assert second.metrics["buffer/filtered"] == 2
    assert second.metrics["buffer/failed"] == 0


def test_the_run_adds_up_tokens_by_staleness():
    meter = RunMeter()
    meter.step(step_result(1, BufferCounts()))
    meter.step(step_result(2, BufferCounts()))
    assert meter.staleness_tokens == {0: 52, 1: 52}
    assert meter.trained_tokens == 104
    assert meter.num_trajectories == 4


def test_the_meter_of_a_resumed_run_goes_on_from_the_recorded_steps():
    whole, first = RunMeter(), RunMeter()
    counts = [BufferCounts(filtered=2, failed=1), BufferCounts(filtered=5, failed=1)]
    whole.step(step_result(1, counts[0]))
    lines = [first.step(step_result(1, counts[0])).to_json()]
    resumed = RunMeter([StepRecord.from_json(line) for line in lines])
    assert resumed.step(step_result(2, counts[1])) == whole.step(step_result(2, counts[1]))
    assert resumed.staleness_tokens == whole.staleness_tokens
    assert resumed.num_trajectories == whole.num_trajectories == 4


def test_a_line_is_read_back_as_it_was_written(tmp_path):
    record = StepRecord(
        step=1,
        version=1,
        elapsed_s=2.5,
        metrics={"reward/mean": 0.5, "learner/loss": math.nan},
        staleness_tokens={0: 52, 3: 7},
    )
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.append(record)
    log.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {
        "step": 1, "version": 1, "elapsed_s": 2.5, "staleness_tokens": {"0": 52, "3": 7},
        "learner/loss": None, "reward/mean": 0.5
    }  # fmt: skip
    (back,) = read_metrics(tmp_path / "metrics.jsonl")
    assert back.metrics["reward/mean"] == 0.5
    assert back.staleness_tokens == {0: 52, 3: 7}
    assert math.isnan(back.metrics["learner/loss"])


def test_the_torn_line_of_a_crash_is_cut_before_the_next_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "version": 1, "elapsed_s": 1.0}\n{"step": 2, "ver')
    assert [r.step for r in read_metrics(path)] == [1]
    log = MetricLog(path)
    log.append(StepRecord(step=2, version=2, elapsed_s=2.0))
    log.close()
    assert [r.step for r in read_metrics(path)] == [1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_on_a_full_disk_the_file_is_named_and_closing_says_nothing_more(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(
        GleanerError, match=r"metrics\.jsonl cannot be written \(.*No space left.*make room"
    ):
        log.append(StepRecord(step=1, version=1, elapsed_s=1.0))
    log.close()


def test_an_undocumented_metric_is_kept_and_said_once(tmp_path, caplog):
    log = MetricLog(tmp_path / "metrics.jsonl")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            log.append(StepRecord(step=step, version=step, elapsed_s=1.0, metrics={"new/one": 1.0}))
    log.close()
    assert caplog.text.count("'new/one'") == 1
    assert read_metrics(tmp_path / "metrics.jsonl")[1].metrics == {"new/one": 1.0}
