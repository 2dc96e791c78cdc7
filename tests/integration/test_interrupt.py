"""Ctrl-C and SIGTERM end a run cleanly: soon, exit code 130, no stack trace, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
REACH_TIMEOUT_S = 700
END_TIMEOUT_S = 180
POLL_S = 0.2


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def an_actor_is_starting(process: subprocess.Popen[bytes], run_dir: Path) -> bool:
    return any("raylet" in child.name() for child in descendants(process.pid))


def a_step_is_recorded(process: subprocess.Popen[bytes], run_dir: Path) -> bool:
    return any(file.stat().st_size > 100 for file in run_dir.rglob("events.out.tfevents*"))


@pytest.mark.timeout(REACH_TIMEOUT_S + 2 * END_TIMEOUT_S)
@pytest.mark.parametrize(
    ("moment", "ending"),
    [
        (an_actor_is_starting, signal.SIGINT),
        (a_step_is_recorded, signal.SIGINT),
        (a_step_is_recorded, signal.SIGTERM),
    ],
)
def test_an_interrupt_ends_the_run_and_all_its_processes(
    moment: Callable[[subprocess.Popen[bytes], Path], bool],
    ending: signal.Signals,
    tiny_task: Path,
    tmp_path: Path,
) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"
    command = [
        *(sys.executable, "-m", "pipeline", "train", "experiment=cpu_tiny", "trainer.steps=1000"),
        *("trainer.evaluate_before=false", "task=files", f"task.dir={tiny_task}"),
        *(f"task.index={tmp_path / 'index'}", f"run_dir={run_dir}"),
        "algorithm.no_answer_reward=-0.5",  # rewards of a group then differ
    ]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + REACH_TIMEOUT_S
        while not moment(process, run_dir):
            assert process.poll() is None, output.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, "the moment was not reached"
            time.sleep(POLL_S)
        started = descendants(process.pid)
        if ending is signal.SIGINT:
            os.killpg(process.pid, ending)  # what a terminal sends
        else:
            process.send_signal(ending)  # what a scheduler sends
        assert process.wait(timeout=END_TIMEOUT_S) == 130
        _, alive = psutil.wait_procs(started, timeout=END_TIMEOUT_S)
        assert [child.name() for child in alive] == []
        said = output.read_text(errors="replace")
        assert "stopped" in said
        assert "Traceback" not in said and "SIGTERM received" not in said
    finally:
        for survivor in [*started, *descendants(process.pid)]:
            if survivor.is_running():
                survivor.kill()
        if process.poll() is None:
            process.kill()
            process.wait()
