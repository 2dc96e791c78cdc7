"""The audit and label commands through the real command line; the judge needs no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.judging.traces import write_traces
from tests.support.judged import hotpot_entry, other_entry, write_entries
from tests.support.traces import traces

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "tracker.progress=none"],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "120"},
    )  # fmt: skip


def succeed(*arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def summary_in(run_dir: Path) -> dict:
    return json.loads((run_dir / "audit.json").read_text(encoding="utf-8"))


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    write_traces(tmp_path / "traces.jsonl", traces())
    return tmp_path / "traces.jsonl"


def test_the_rule_agrees_with_labels_of_its_own(trace_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    output = succeed("audit", "judge=evidence", f"traces={trace_file}", f"run_dir={run_dir}")
    summary = summary_in(run_dir)
    for signal in ("utility", "correctness", "contribution"):
        assert summary["signals"][signal]["agreement"]["value"] == 1.0
    assert summary["counts"] == {"rounds": 12, "unlabelled": 0, "asked": 12, "without_verdict": 0}
    assert summary["source"] == str(trace_file)
    assert "every verdict is the label" in (run_dir / "audit.html").read_text(encoding="utf-8")
    assert len((run_dir / "verdicts.jsonl").read_text().splitlines()) == 12
    assert "100.0 %" in output
    assert "agreement is no evidence" in output


def test_a_judge_that_turns_every_signal_agrees_with_nothing(
    trace_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    succeed(
        "audit", "judge=evidence", "judge.flip_probability=1", "audit.page=false",
        "audit.repeats=2", "audit.limit=2", f"traces={trace_file}", f"run_dir={run_dir}",
    )  # fmt: skip
    summary = summary_in(run_dir)
    assert summary["signals"]["utility"]["agreement"]["value"] == 0.0
    assert (summary["traces"], summary["repeats"]) == (2, 2)
    assert summary["consistency"]["utility"]["unanimous"]["value"] == 1.0
    assert summary["calibration"]["utility"]["brier"]["value"] == 1.0
    assert not (run_dir / "audit.html").exists()


def test_labels_by_a_person_go_out_come_back_and_are_audited(
    trace_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    page = tmp_path / "rounds.html"
    succeed("label", f"traces={trace_file}", f"label.export={page}", f"run_dir={run_dir}")
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    said = [{**r, "utility": 1, "correctness": 1, "labelled_by": "Ann"} for r in rows[:5]]
    (tmp_path / "ann.jsonl").write_text("\n".join(map(json.dumps, said)))
    merged = tmp_path / "labelled.jsonl"
    succeed(
        "label", f"traces={trace_file}", f"label.import_from={tmp_path}/ann.jsonl",
        f"label.output={merged}", f"run_dir={run_dir}",
    )  # fmt: skip
    succeed("audit", "judge=evidence", f"traces={merged}", f"run_dir={run_dir}")
    summary = summary_in(run_dir)
    assert summary["labelled_by"] == {"human": 2}
    # of the five rounds only the one that failed is 0 in utility for the rule
    assert summary["signals"]["utility"]["confusion"] == [[0, 0], [1, 4]]


def test_a_question_set_with_supporting_facts_is_audited_and_its_traces_stay(
    tmp_path: Path,
) -> None:
    questions = write_entries(tmp_path / "tiny.json", hotpot_entry(), other_entry())
    run_dir = tmp_path / "run"
    output = succeed("audit", "judge=evidence", f"questions={questions}", f"run_dir={run_dir}")
    summary = summary_in(run_dir)
    assert summary["labelled_by"] == {"supporting facts": 4}
    assert summary["signals"]["utility"]["agreement"]["value"] == 1.0
    assert {entry["kind"] for entry in summary["by_kind"]} >= {"found"}
    assert len((run_dir / "traces.jsonl").read_text().splitlines()) == 4
    assert "agreement by kind of round" in output


def test_attacks_are_counted_and_written_with_what_was_attacked(
    trace_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    output = succeed(
        "attack", "judge=evidence", "audit.attempts=3", "audit.concurrency=7",
        f"traces={trace_file}", f"run_dir={run_dir}",
    )  # fmt: skip
    summary = json.loads((run_dir / "attacks.json").read_text(encoding="utf-8"))
    assert (summary["judge"]["name"], summary["source"]) == ("evidence", str(trace_file))
    assert summary["notes"] == []
    by_what = {name: found["counts"] for name, found in summary["attacks"].items()}
    assert (by_what["empty round"], by_what["authority"]) == ("errors", "turns")
    assert summary["attacks"]["authority"]["utility"]["turned"] == 0
    others = summary["attacks"]["authority"]["others"]
    assert others["lowered"]["correctness"]["attacked"] > 0
    assert others["lowered"]["correctness"]["turned"] == others["no_verdict"] == 0
    assert summary["attacks"]["empty round"]["others"] is None
    assert "one of errors, not of turns" in " ".join(output.split())
    assert "right verdicts that turned" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("audit",), "audit needs labelled rounds"),
        (("audit", "traces=a.jsonl", "questions=b.json"), "both given"),
        (("audit", "traces=nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (("attack", "traces=nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (("label", "traces=nowhere.jsonl"), "label needs traces=FILE"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    done = run(*arguments, f"run_dir={tmp_path}/run")
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "run").exists()
