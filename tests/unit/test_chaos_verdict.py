"""What the chaos test calls a recovery, on a scripted run: no processes, no time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import chaos, faults, small_disk
from benchmarks.chaos import Outcome, run_with_faults, score_problem, spread
from benchmarks.faults import FAULTS, Fault
from benchmarks.watched_run import WatchedRun
from pipeline.step_record import StepRecord


class ScriptedRun(WatchedRun):
    """Makes a step every 10 seconds; the clock goes on by one whenever somebody looks. What is
    killed is back after ``back_after`` seconds; None: never."""

    def __init__(self, directory: Path, back_after: int | None) -> None:
        self.run_dir = self.faults = directory
        self.nodes = self.disk = None
        self.process = cast("Any", self)
        self.now, self.back_after = 25.0, back_after
        self.lines = ["rollout-0 is process 10", "rollout-1.2 is process 11"]
        self.killed: list[tuple[int, int]] = []
        self.back_at: float | None = None

    def wait(self, condition: Any = None, limit_s: float = 0.0, timeout: float = 0.0) -> Any:
        while condition and not condition():
            self.now += 1
        return 0  # also the exit code, when asked as a process

    def kill(self, pid: int, number: int) -> None:
        self.killed.append((pid, number))
        self.lines.append("rollout-0 is process 12")  # somebody else's, at the same time
        if self.back_after is not None:
            self.back_at = self.now + self.back_after

    def records(self) -> list[StepRecord]:
        steps = range(1, 1 + int(self.now // 10))
        seconds = {"step/seconds": 10.0}
        return [StepRecord(step=s, version=s, elapsed_s=10.0 * s, metrics=seconds) for s in steps]

    @property
    def log(self) -> str:
        back = self.back_at is not None and self.now >= self.back_at
        return "\n".join([*self.lines, *["x: rollout-1.3 is process 13"] * back])


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], ScriptedRun]:
    def make(back_after: int | None) -> ScriptedRun:
        run = ScriptedRun(tmp_path, back_after)
        monkeypatch.setattr(chaos, "time", SimpleNamespace(monotonic=lambda: run.now))
        monkeypatch.setattr(faults, "os", SimpleNamespace(kill=run.kill))
        return run

    return make


KILL = next(f for f in FAULTS if f.name == "kill-rollout")


def test_a_run_goes_on_when_it_made_a_step_and_the_actor_is_back(run_of) -> None:
    run = run_of(17)
    (outcome,) = run_with_faults(run, [KILL], say=lambda text: None)
    assert run.killed == [(11, signal.SIGKILL)]
    assert outcome == Outcome("kill-rollout", 5.0, 10.0, 60.0, "rollout-1.2", 17.0)
    assert list(outcome.problems()) == []


def test_steps_without_the_actor_that_was_killed_are_no_recovery(run_of) -> None:
    (outcome,) = run_with_faults(run_of(None), [KILL], say=lambda text: None)
    assert (outcome.next_step_s, outcome.back_s) == (5.0, None)
    assert list(outcome.problems()) == ["kill-rollout: rollout-1.2 was not back within 60 s"]


def test_a_step_that_comes_too_late_is_told(run_of) -> None:
    quick = Fault("kill-rollout", 3.0, process=KILL.process)
    (outcome,) = run_with_faults(run_of(1), [quick], say=lambda text: None)
    assert list(outcome.problems()) == [
        "kill-rollout: the next step came after 5 s, the limit is 3 s"
    ]


def test_a_disk_that_no_checkpoint_met_full_proves_nothing(run_of) -> None:
    full = next(f for f in FAULTS if f.disk)
    with pytest.raises(RuntimeError, match="full-disk-at-checkpoint: every checkpoint was written"):
        run_with_faults(run_of(None), [full], say=lambda text: None)


def test_a_score_counts_as_undisturbed_within_the_interval_of_one_more_run() -> None:
    found = spread([0.86, 0.88, 0.88, 0.90])
    # mean 0.88, deviation 0.0163, t(3) 3.182, times sqrt(5/4)
    assert found == pytest.approx(
        {"min": 0.86, "max": 0.90, "low": 0.8219, "high": 0.9381}, abs=1e-4
    )
    assert score_problem(0.83, found) == score_problem(0.93, found) == ""
    told = "score 0.810 is not where undisturbed runs lie: 0.822 to 0.938"
    assert score_problem(0.81, found) == told
    assert score_problem(0.95, found)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What this process would have become."""
    commands: list[list[str]] = []
    monkeypatch.delenv(small_disk._MARK, raising=False)
    monkeypatch.setattr(os, "execvpe", lambda file, command, env: commands.append(command))
    return commands


def test_where_mounting_is_not_permitted_the_reason_is_told(started, monkeypatch) -> None:
    monkeypatch.setattr(small_disk, "_UNSHARE", ("sh", "-c", "echo not permitted >&2; exit 1"))
    assert small_disk.enter_private_mounts("benchmarks.chaos", []) == "not permitted"
    monkeypatch.setattr(small_disk, "_UNSHARE", ("no-such-program",))
    assert "no-such-program" in small_disk.enter_private_mounts("benchmarks.chaos", [])
    assert started == []


def test_where_it_is_permitted_the_benchmark_is_started_again_once(started, monkeypatch) -> None:
    monkeypatch.setattr(small_disk, "_UNSHARE", ("true",))
    small_disk.enter_private_mounts("benchmarks.chaos", ["undisturbed=0"])
    assert started == [["true", sys.executable, "-m", "benchmarks.chaos", "undisturbed=0"]]
    monkeypatch.setenv(small_disk._MARK, "1")
    assert small_disk.enter_private_mounts("benchmarks.chaos", ["undisturbed=0"]) == ""
    assert len(started) == 1
