"""A training run as a subprocess, for benchmarks and the chaos test."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from benchmarks.small_disk import SmallDisk
from benchmarks.two_nodes import TwoNodes
from pipeline.failpoints import VARIABLE
from pipeline.step_record import StepRecord, read_metrics

__all__ = ["STEP_LIMIT_S", "WatchedRun"]

POLL_S = 0.2
CPU_POLL_S = 3.0  # walking through all processes takes CPU itself
STEP_LIMIT_S = 600.0  # for a step to come at all


class WatchedRun:
    """A training run as a subprocess, watched through what it leaves in its directory, which may be
    a small disk of its own."""

    def __init__(
        self,
        run_dir: Path,
        settings: Sequence[str],
        nodes: TwoNodes | None = None,
        disk: SmallDisk | None = None,
    ) -> None:
        self.run_dir, self.nodes, self.disk = run_dir, nodes, disk
        if nodes is not None:
            settings = [*settings, f"cluster.address={nodes.address}"]
        self._cpu_s: dict[int, float] = {}  # by process
        self._cpu_at = 0.0  # when they were asked last
        self.faults = run_dir.parent / f"{run_dir.name}-faults"
        self.faults.mkdir(parents=True)
        command = [sys.executable, "-m", "pipeline", "train", *settings, f"run_dir={run_dir}"]
        self._output = (run_dir.parent / f"{run_dir.name}.log").open("w")
        self.process = subprocess.Popen(
            command,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, VARIABLE: str(self.faults)},
            start_new_session=True,
        )

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far, also of those that ended."""
        self._cpu_at = time.monotonic()
        try:
            root = psutil.Process(self.process.pid)
            alive = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            alive = []
        for process in alive:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu_s[process.pid] = times.user + times.system
        return sum(self._cpu_s.values())

    @property
    def said(self) -> str:
        """What it printed."""
        return Path(self._output.name).read_text(encoding="utf-8", errors="replace")

    def records(self) -> list[StepRecord]:
        """The train steps so far."""
        path = self.run_dir / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    @property
    def log(self) -> str:
        """What it wrote to ``run.log``."""
        path = self.run_dir / "run.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def processes(self, name: str) -> list[tuple[str, int]]:
        """Names that match ``name``, a regular expression, and the process ids that the log gives
        them, in order of time."""
        found = re.findall(rf"\b({name}) is process (\d+)", self.log)
        return [(each, int(pid)) for each, pid in found]

    def wait_for_step(self, step: int, limit_s: float = STEP_LIMIT_S) -> None:
        """Wait until ``step`` is recorded. Raises TimeoutError, or RuntimeError where the run
        ended."""
        self.wait(lambda: bool(self.records()) and self.records()[-1].step >= step, limit_s)

    def wait(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Wait until ``condition`` holds. Raises TimeoutError or RuntimeError, as above."""
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() - self._cpu_at > CPU_POLL_S:
                self.cpu_s()  # of processes that end before somebody asks
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended early:\n{self.said[-3000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {limit_s:g} s:\n{self.said[-3000:]}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                root = psutil.Process(self.process.pid)
                for process in [root, *root.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        self._output.close()
