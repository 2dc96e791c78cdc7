"""The same names reach every sink; W&B is asked for, never assumed."""

import math
import sys
from types import ModuleType

import pytest

from pipeline.config import TrackerConfig
from pipeline.errors import UserError
from pipeline.step_record import StepRecord, read_metrics
from pipeline.tracking import open_trackers

RECORD = StepRecord(
    step=3,
    version=3,
    elapsed_s=1.0,
    metrics={"reward/mean": 0.25, "learner/loss": math.nan},
)


def test_tensorboard_holds_the_finite_scalars_under_the_same_names(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(TrackerConfig(), tmp_path) as trackers:
        trackers.append(RECORD)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    (scalar,) = events.Scalars("reward/mean")
    assert (scalar.step, scalar.value) == (3, 0.25)


def test_without_tensorboard_the_record_is_still_written(tmp_path):
    with open_trackers(TrackerConfig(tensorboard=False), tmp_path) as trackers:
        trackers.append(RECORD)
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path / "metrics.jsonl")[0].metrics["reward/mean"] == 0.25


def test_records_are_closed_when_the_run_ends_by_an_error(tmp_path):
    trackers = open_trackers(TrackerConfig(tensorboard=False), tmp_path)
    with pytest.raises(RuntimeError, match="engine"), trackers:
        trackers.append(RECORD)
        raise RuntimeError("engine died")
    with pytest.raises(ValueError, match="closed"):
        trackers.append(RECORD)


def test_wandb_without_the_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install wandb"):
        open_trackers(TrackerConfig(wandb=True), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wandb_without_a_key_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # as if it were installed
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        open_trackers(TrackerConfig(wandb=True), tmp_path)
