"""A short `make chaos`: a real run whose learner, engine and driver die, one after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos import Outcome, problems_of, run_with_faults
from benchmarks.faults import FAULTS
from benchmarks.watched_run import WatchedRun
from pipeline.ledger_view import read_ledger

LIMIT_S = 2400
BACK_S = 400.0
CHOSEN = (
    "judge-garbage",
    "full-disk-at-checkpoint",
    "kill-learner",
    "freeze-rollout",
    "kill-driver",
)


@pytest.fixture(scope="module")
def struck(
    tiny_task: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WatchedRun, list[Outcome]]]:
    """A run that every chosen fault happened to, and what came of it."""
    run = WatchedRun(
        tmp_path_factory.mktemp("chaos") / "run",
        [
            "experiment=cpu_tiny",
            "task=files",
            f"task.dir={tiny_task}",
            "trainer.steps=20",
            "trainer.evaluate_before=false",
            "evaluate.limit=8",
            "report.enabled=false",
            "checkpoint.every=2",
            "cluster.health_interval_s=1",
            "cluster.health_timeout_s=10",
            "algorithm.no_answer_reward=-0.5",  # rewards of a group then differ
            "algorithm.failures=same",  # failures are judged like successes
            "learner.lr=1e-5",  # at which it goes on to search, and to differ
        ],
    )
    try:
        faults = [next(f for f in FAULTS if f.name == name) for name in CHOSEN]
        patient = [replace(f, limit_s=BACK_S) for f in faults]  # how soon is for the benchmark
        yield run, run_with_faults(run, patient)
    finally:
        run.stop()


@pytest.mark.timeout(LIMIT_S)
def test_the_run_goes_on_after_each_fault_and_ends_in_order(struck):
    run, outcomes = struck
    assert [o.fault for o in outcomes] == list(CHOSEN)
    assert [o.struck for o in outcomes] == ["", "", "learner-0", "rollout-0", "the driver"]
    assert all(o.back_s for o in outcomes if o.struck)
    assert run.records()[-1].step == 20
    said = run.said
    assert "the learner is back, with the weights that it had" in said
    assert "the driver was ended by SIGKILL; it goes on in" in said
    log = (run.run_dir / "run.log").read_text(encoding="utf-8")
    assert "was silent for 10 s" in log
    assert "a judge answered 'garbage'" in log
    assert "no checkpoint of step" in log and "No space left on device" in log


@pytest.mark.timeout(LIMIT_S)
def test_the_ledger_adds_up_the_proofs_held_and_the_journal_leads_to_the_same_weights(struck):
    run, _ = struck
    assert problems_of(run) == []
    view = read_ledger(run.run_dir / "ledger.sqlite")
    assert view.resumes == 1
    assert any(row.issues > 1 for row in view.rows)  # in flight when the driver died
    assert not any(row.rolled_back for row in view.rows)


@pytest.mark.timeout(LIMIT_S)
def test_the_last_checkpoint_exports_the_policy_that_the_run_ended_with(struck, tmp_path):
    run, _ = struck
    command = [sys.executable, "-m", "pipeline", "export", f"run_dir={run.run_dir}"]
    done = subprocess.run(
        [*command, f"export.output={tmp_path / 'policy'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"policy of step 20: {tmp_path / 'policy'}" in done.stdout
    ours, theirs = (
        (d / "policy" / "model.safetensors").read_bytes() for d in (tmp_path, run.run_dir)
    )
    assert ours == theirs
    done = subprocess.run(
        [*command, "export.checkpoint=3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "has no such checkpoint (steps there: 18, 20;" in done.stderr
