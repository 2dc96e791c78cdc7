"""The whole thing for real, at the smallest size: train, look at what is left, evaluate again."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.journal import FileJournal, read_journal
from pipeline.ledger_view import read_ledger

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def finished_run(tiny_task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps at staleness 0 with the small policy; silence costs, so that rewards differ."""
    run_dir = tmp_path_factory.mktemp("train") / "run"
    done = pipeline(
        "train",
        "experiment=cpu_tiny",
        "task=files",
        f"task.dir={tiny_task}",
        "buffer.max_staleness=0",
        "algorithm.no_answer_reward=-0.5",
        "evaluate.limit=8",
        f"run_dir={run_dir}",
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    return run_dir


@pytest.fixture(scope="module")
def steps(finished_run: Path) -> list[dict[str, float]]:
    lines = (finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.timeout(LIMIT_S)
def test_every_publish_was_proven_to_1e_4_in_fp32(steps):
    assert len(steps) == 2
    assert all(0 <= step["publish/probe_error"] <= 1e-4 for step in steps)


def test_at_staleness_0_every_token_is_on_policy_and_the_learner_agrees_with_the_sampler(steps):
    for step in steps:
        assert step["buffer/staleness_max"] == 0
        assert step["learner/logprob_difference_max"] <= 1e-4
        assert step["learner/ratio_max"] == pytest.approx(1.0, abs=1e-3)


def test_training_moved_the_weights(steps):
    assert all(math.isfinite(s["learner/loss"]) and s["learner/grad_norm"] > 0 for s in steps)


def test_the_summary_has_what_programs_rely_on(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["profile"], summary["algorithm"], summary["steps"]) == (
        "cpu_tiny",
        "cw_grpo",
        2,
    )
    assert set(summary["seconds"]) == {"setup", "train", "evaluate"}
    for phase in ("before", "after"):
        assert set(summary["em"][phase]) == {"value", "low", "high", "n"}
        assert set(summary["redundant_searches"][phase]) == {"value", "low", "high", "n"}
    assert summary["staleness"] == {"max": 0, "mean": 0.0}
    assert summary["trained_tokens"] > 0


def test_the_run_directory_has_report_config_versions_log_and_events(finished_run):
    names = {p.name for p in finished_run.iterdir()}
    assert {"report.html", "config.yaml", "versions.json", "run.log", "policy"} <= names
    assert list((finished_run / "tensorboard").glob("events.out.tfevents*"))
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert "http-equiv" in page and "<script src" not in page


def test_the_ledger_of_the_run_adds_up_and_is_printed(finished_run, steps):
    done = pipeline("ledger", f"run_dir={finished_run}")
    assert done.returncode == 0, done.stderr
    view = read_ledger(finished_run / "ledger.sqlite")
    groups = view.groups_per_step
    assert view.outcome == "ended" and {s: len(r) for s, r in view.steps().items()} == {
        1: groups,
        2: groups,
    }
    filtered = sum(s["buffer/filtered"] for s in steps)
    assert view.counts()["filtered"] >= filtered  # some more after the last step
    assert done.stdout.startswith(
        f"the run ended; {len(view.rows)} groups = {2 * groups} trained + "
    )
    assert done.stdout.endswith("everything adds up\n")


@pytest.mark.timeout(LIMIT_S)
def test_a_replay_ends_at_the_weights_that_the_run_exported(finished_run, tmp_path):
    done = pipeline(
        "replay", f"run_dir={finished_run}", "to_step=2", f"replay.output={tmp_path / 'policy'}"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the weights of all versions up to 2 are those that were published" in done.stdout
    ours, theirs = (
        (d / "policy" / "model.safetensors").read_bytes() for d in (tmp_path, finished_run)
    )
    assert ours == theirs


@pytest.mark.timeout(LIMIT_S)
def test_a_replay_of_another_batch_says_from_which_step_on_it_differs(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    journal = tmp_path / "run" / "journal"
    second = list(read_journal(journal).entries(2))
    for entry in second:
        samples = [replace(s, advantages=np.float32(0.5) * s.advantages) for s in entry.samples]
        changed = FileJournal(tmp_path / "changed")
        changed.record(replace(entry, samples=samples))
    (tmp_path / "changed" / "000002-0.safetensors").replace(journal / "000002-0.safetensors")
    done = pipeline("replay", f"run_dir={tmp_path / 'run'}")
    assert (done.returncode, len(second)) == (1, 1)
    assert "after step 2 the weights have digest" in done.stderr
    assert "up to step 1 they are equal" in done.stderr


def test_a_replay_beyond_the_end_is_refused(finished_run):
    done = pipeline("replay", f"run_dir={finished_run}", "to_step=3")
    assert done.returncode == 2
    assert "to_step=3: the run in" in done.stderr and "published 2 steps" in done.stderr
    done = pipeline("replay", f"run_dir={finished_run}", "learner.threads=2")
    assert done.returncode == 2
    assert "replay: 'learner.threads=2' would not reach the run" in done.stderr


def test_a_run_directory_is_not_used_twice(finished_run, tiny_task):
    done = pipeline(
        "train", "experiment=cpu_tiny", "task=files", f"task.dir={tiny_task}",
        f"run_dir={finished_run}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "holds a run already (ledger.sqlite is there): choose another run_dir" in done.stderr
    assert (finished_run / "metrics.jsonl").exists()
    before = (finished_run / "config.yaml").read_bytes()
    done = pipeline(
        "evaluate", "experiment=cpu_tiny", "task=files", f"task.dir={tiny_task}",
        f"policy={finished_run / 'policy'}", f"run_dir={finished_run}",
    )  # fmt: skip
    assert done.returncode == 2
    assert (finished_run / "config.yaml").read_bytes() == before


@pytest.mark.timeout(LIMIT_S)
def test_evaluating_the_exported_policy_reproduces_the_summary(finished_run, tiny_task, tmp_path):
    done = pipeline(
        "evaluate",
        "experiment=cpu_tiny",
        "task=files",
        f"task.dir={tiny_task}",
        f"policy={finished_run / 'policy'}",
        f"questions={tiny_task / 'dev.jsonl'}",
        "evaluate.limit=8",
        f"run_dir={tmp_path / 'evaluation'}",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    summary = json.loads((finished_run / "summary.json").read_text(encoding="utf-8"))
    assert found["dev"]["main"]["em"] == summary["em"]["after"]
    assert "exact match of" in done.stdout
