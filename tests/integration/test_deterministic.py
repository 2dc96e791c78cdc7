"""``deterministic=true``: two runs on the same machine have the same weights, to the last bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.journal import read_journal
from pipeline.step_record import read_metrics

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900


def train(tiny_task: Path, run_dir: Path, *overrides: str) -> dict[int, str]:
    """The digest of each published version."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline", "train", "experiment=cpu_tiny"),
            *("deterministic=true", "task=files", f"task.dir={tiny_task}", "trainer.steps=2"),
            *("trainer.evaluate_after=false", "report.enabled=false", f"run_dir={run_dir}"),
            *("rollout.num_actors=2", "cluster.num_cpus=3"),  # each has its share of the questions
            "algorithm.no_answer_reward=-0.5",  # rewards of a group then differ
            *overrides,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    assert "A worker died" not in done.stderr + done.stdout
    return read_journal(run_dir / "journal").digests


@pytest.mark.timeout(2 * LIMIT_S)
def test_two_runs_have_the_same_weights_whatever_else_they_do(tiny_task, tmp_path):
    first = train(tiny_task, tmp_path / "first", "trainer.evaluate_before=false")
    second = train(tiny_task, tmp_path / "second", "evaluate.limit=8")  # that engines sampled for
    assert first == second
    assert len(set(first.values())) == 3
    other = read_metrics(tmp_path / "first" / "metrics.jsonl")
    assert all(record.metrics["buffer/staleness_max"] == 0 for record in other)
