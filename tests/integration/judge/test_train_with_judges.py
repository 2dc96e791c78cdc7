"""Whole training runs whose judge is an endpoint: it answers, refuses the key, or dies.

What a failing judge does to the loop, step by step: test_judges_in_the_loop.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger_view import GroupState, read_ledger
from tests.integration.judge.conftest import KEY
from tests.support.judge_server import Answer, Asked, JudgeServer, refusal

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 900
GROUP_SIZE, MAX_SEARCHES = 8, 3  # a trajectory's last round is its answer
WRONG_KEY = "sk-wrong-0123456789abcdef"

Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def train(server: JudgeServer, tiny_task: Path, run_dir: Path) -> Train:
    """Two steps with the small policy, which knows nothing of this task: silence costs, so that
    rewards differ, failures are judged like successes, and groups are large enough that some of
    their trajectories search."""

    def train(*settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "pipeline", "train", "experiment=cpu_tiny"),
                *("task=files", f"task.dir={tiny_task}", f"run_dir={run_dir}"),
                *("algorithm.no_answer_reward=-0.5", "algorithm.failures=same"),
                f"buffer.group_size={GROUP_SIZE}",
                *("trainer.evaluate_before=false", "trainer.evaluate_after=false"),
                *("judge=openai", "judge.model=judge", f"judge.base_url={server.base_url}"),
                *("judge.cache=", "judge.call_retries=0"),
                *settings,
            ],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    return train


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def spent_tokens(run_dir: Path) -> int:
    """Of all lives of the run."""
    row = json.loads((run_dir / "judge_spent.json").read_text(encoding="utf-8"))
    return int(row["tokens"])


def only_with_the_key(asked: Asked) -> Answer | None:
    if asked.headers["authorization"] == f"Bearer {KEY}":
        return None
    return refusal(401, f"Incorrect API key provided: {asked.headers['authorization']}")


@pytest.mark.timeout(2 * LIMIT_S)
def test_a_wrong_key_ends_it_before_training_and_with_the_right_one_it_is_judged_to_the_end(
    server: JudgeServer, train: Train, run_dir: Path
) -> None:
    server.every = only_with_the_key
    server.judge = lambda shown: (len(shown["query"]) % 2, 1)
    refused = train(OPENAI_API_KEY=WRONG_KEY)
    assert refused.returncode == 2
    said = refused.stdout + refused.stderr
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for named in ("OPENAI_API_KEY", server.base_url, "judge.model=judge"):
        assert named in errors[0]
    assert WRONG_KEY not in said and "Traceback" not in said
    assert not server.judged
    assert not run_dir.exists()

    done = train("report.trajectories=4")  # in the same directory
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    steps = steps_of(run_dir)
    assert len(steps) == 2
    for name in ("rounds", "calls", "prompt_tokens", "completion_tokens", "call_s"):
        assert sum(s[f"judge/{name}"] for s in steps) > 0, name
    for step in steps:
        assert step["judge/prompt_tokens"] == 10 * step["judge/calls"]  # as the server tells
        assert step["judge/completion_tokens"] == 5 * step["judge/calls"]
        # The groups of a step may all have been judged while the step before was trained.
        assert (step["judge/call_s"] > 0) == (step["judge/calls"] > 0)
        assert step["judge/wait_s"] >= 0
        assert step["judge/v_mean"] == 1.0
        assert (
            step["judge/failures"] == step["judge/failed_calls"] == step["judge/bad_answers"] == 0
        )
        assert step["credit/failed_verdict_share"] == 0
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    costs = summary["judge"]
    assert costs["calls"] >= sum(s["judge/calls"] for s in steps)  # some groups were not trained
    # Of a group that was stopped in the judge's hands calls are counted, and no rounds.
    stopped = read_ledger(run_dir / "ledger.sqlite").counts()[GroupState.STOPPED]
    without_rounds = costs["calls"] + costs["cache_hits"] - costs["rounds"]
    assert 0 <= without_rounds <= stopped * GROUP_SIZE * MAX_SEARCHES
    assert costs["failures"] == 0
    a_call = 10 + 5  # tokens
    spent = spent_tokens(run_dir)
    assert sum(s["judge/calls"] for s in steps) * a_call <= spent <= costs["calls"] * a_call
    assert summary["verdict_sensitivity"]["verdicts"] == sum(s["judge/rounds"] for s in steps)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "What judging cost" in page
    assert any(f"on {asked.trace[-1]['query']}"[:20] in page for asked in server.judged)
    kept = b"".join(p.read_bytes() for p in run_dir.rglob("*") if p.is_file())
    assert KEY.encode() not in kept


@pytest.mark.timeout(2 * LIMIT_S)
def test_an_endpoint_that_dies_ends_the_run_and_resumed_each_group_is_trained_once(
    server: JudgeServer, train: Train, run_dir: Path
) -> None:
    good, settings = 2, ("judge.stop_after_failures=2", "judge.concurrency=1")
    server.every = lambda asked: refusal(500, "out of order") if len(server.judged) > good else None
    stopped = train(*settings)
    assert stopped.returncode == 2, stopped.stderr[-4000:]
    errors = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the judge gave no verdict on" in errors[0] and "out of order" in errors[0]
    assert "resume=auto" in errors[0] and "Traceback" not in stopped.stderr
    log = (run_dir / "run.log").read_text(encoding="utf-8")
    assert "judge-0 warns: a judge gave no answer" in log
    assert KEY not in log
    before = read_ledger(run_dir / "ledger.sqlite")
    assert (before.outcome, before.problems()) == ("failed", [])
    assert len(before.steps()) < 2

    spent, asked = spent_tokens(run_dir), len(server.judged)
    assert 0 < spent <= 15 * good
    server.every = lambda asked: None
    refused = train("judge.budget_tokens=1", "resume=auto")  # another life is no other budget
    assert refused.returncode == 2, refused.stderr[-4000:]
    assert f"the judge's budget is spent: {spent} of 1 tokens of the whole run" in refused.stderr
    assert len(server.judged) == asked

    done = train(*settings, "resume=auto")
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    view = read_ledger(run_dir / "ledger.sqlite")
    assert (view.outcome, view.resumes, view.problems()) == ("ended", 2, [])
    assert {step: len(rows) for step, rows in view.steps().items()} == {1: 2, 2: 2}
    assert view.counts()[GroupState.FAILED] == 0
    assert not any(row.rolled_back for row in view.rows)
    finished = {r.ticket: r.state for r in before.rows if not r.state.in_flight}
    assert {t: view.rows[t].state for t in finished} == finished
    assert [s["step"] for s in steps_of(run_dir)] == [1, 2]
    assert len(server.judged) > asked
