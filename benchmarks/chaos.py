"""``make chaos``: a real training run while its parts are killed, frozen and made to fail, in turn.

    python -m benchmarks.chaos [faults=kill-learner,kill-driver] [undisturbed=4] [key=value ...]

After each fault the run must go on: within a time limit the next train step is recorded, and
another process is in the place of one that was struck. At the end the ledger must add up, every
publish have been proven, the journal lead to every published digest again, and the score lie where
one more undisturbed run of the same configuration would with 95 % probability. The rest of the
arguments go to the run. Results: ``benchmarks/results/chaos.json``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.faults import FAULTS, Fault, Struck
from benchmarks.paired import write_benchmark
from benchmarks.small_disk import SmallDisk, enter_private_mounts
from benchmarks.two_nodes import two_nodes
from benchmarks.watched_run import STEP_LIMIT_S, WatchedRun
from pipeline.ledger import FILE_NAME as LEDGER
from pipeline.ledger_check import problems_of as ledger_problems
from pipeline.ledger_view import read_ledger

__all__ = ["Outcome", "problems_of", "run_with_faults", "score_problem", "spread"]

_NO_CHECKPOINT = "no checkpoint of step"

HEAD_CPUS, SECOND_CPUS = 3, 1  # the second node has room for an engine, not for the learner
PROOF_BOUND = 1e-4  # of the probe prompt's log-probabilities, in float32
SETTINGS = (
    "experiment=cpu_default",
    "trainer.steps=40",
    "trainer.minutes=0",
    "trainer.evaluate_before=false",
    "evaluate.split=dev",
    "evaluate.sampled=0",
    "report.enabled=false",
    "checkpoint.every=2",  # so that one falls into the time of a full disk
    "judge.request_timeout_s=5",
    "cluster.health_timeout_s=15",
    "buffer.groups_per_step=8",
    "rollout.num_actors=2",
    "learner.threads=2",
    "cluster.num_cpus=4",
    "supervisor.max_restarts=5",
)


@dataclass(frozen=True)
class Outcome:
    """What a fault led to: seconds to the next step, and how long a step takes otherwise; which
    process was struck, if one was, and seconds until another was in its place (None: not within the
    limit)."""

    fault: str
    next_step_s: float
    usual_step_s: float
    limit_s: float
    struck: str = ""
    back_s: float | None = None

    def problems(self) -> Iterator[str]:
        """What took too long."""
        if self.next_step_s > self.limit_s:
            yield (
                f"{self.fault}: the next step came after {self.next_step_s:.0f} s, the limit is "
                f"{self.limit_s:.0f} s"
            )
        if self.struck and self.back_s is None:
            yield f"{self.fault}: {self.struck} was not back within {self.limit_s:.0f} s"


def run_with_faults(
    run: WatchedRun, faults: Sequence[Fault], say: Callable[[str], None] = print
) -> list[Outcome]:
    """Let every fault happen, each when a step was made since the last. The run then ends by
    itself.

    Raises TimeoutError where a step does not come at all, RuntimeError where the run fails, or
    where no checkpoint met a full disk.
    """
    outcomes = []
    run.wait_for_step(2)
    for fault in faults:
        usual_s = statistics.median(r.metrics["step/seconds"] for r in run.records())
        unwritten = run.log.count(_NO_CHECKPOINT)
        with fault.injected(run) as struck:
            outcome = _what_followed(run, fault, struck, usual_s)
        if fault.disk and run.log.count(_NO_CHECKPOINT) == unwritten:
            raise RuntimeError(f"{fault.name}: every checkpoint was written")
        outcomes.append(outcome)
        back = f", {outcome.struck} back after {_seconds(outcome.back_s)}" if struck else ""
        say(
            f"{fault.name}: next step after {outcome.next_step_s:.1f} s (a step takes "
            f"{usual_s:.1f} s){back}"
        )
        run.wait_for_step(run.records()[-1].step + 1)
    if (code := run.process.wait(timeout=3600)) != 0:
        raise RuntimeError(f"the run ended with exit code {code}:\n{run.said[-3000:]}")
    return outcomes


def _what_followed(run: WatchedRun, fault: Fault, struck: Struck | None, usual_s: float) -> Outcome:
    """Wait for the next step, and for the process in the place of the one that was struck; what
    fails for a while does for three steps."""
    step, num_steps = run.records()[-1].step, 3 if fault.place else 1
    times = [began := time.monotonic()]
    back_s: float | None = None

    def is_over() -> bool:
        nonlocal back_s
        now = time.monotonic()
        if struck and back_s is None and now - began <= fault.limit_s and struck.is_back():
            back_s = now - began
        if len(times) <= num_steps and run.records()[-1].step >= step + len(times):
            times.append(now)
        missing = struck and back_s is None and now - began <= fault.limit_s
        return len(times) > num_steps and not missing

    run.wait(is_over, STEP_LIMIT_S)
    return Outcome(
        fault.name,
        max(after - before for before, after in pairwise(times)),
        usual_s,
        fault.limit_s,
        struck.name if struck else "",
        back_s,
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def problems_of(run: WatchedRun) -> list[str]:
    """What does not hold after the run; empty where all does."""
    view = read_ledger(run.run_dir / LEDGER)
    found = [f"ledger: {problem}" for problem in ledger_problems(view, run.run_dir)]
    if view.outcome != "ended":
        found.append(f"ledger: the run did not end in order ({view.outcome or 'killed'})")
    errors = [record.metrics["publish/probe_error"] for record in run.records()]
    if not max(errors) <= PROOF_BOUND:
        found.append(f"a publish was off by {max(errors):.1e}, the bound is {PROOF_BOUND:.0e}")
    replayed = subprocess.run(
        [sys.executable, "-m", "pipeline", "replay", f"run_dir={run.run_dir}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if replayed.returncode != 0:
        found.append(f"replay: {replayed.stderr.strip()[-500:]}")
    return found


def score_of(run_dir: Path) -> float:
    """Exact match of the trained policy."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return float(summary["em"]["after"]["value"])


def spread(scores: Sequence[float]) -> dict[str, float]:
    """Range of the scores, and where one more run lies with 95 % probability (Student's t). The
    range alone would be no test: of five equal runs the fifth lies outside it in two of five
    cases."""
    n, mean = len(scores), statistics.mean(scores)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(scores) * (1 + 1 / n) ** 0.5
    return {"min": min(scores), "max": max(scores), "low": mean - half, "high": mean + half}


def score_problem(score: float, undisturbed: Mapping[str, float]) -> str:
    """What is wrong with a score, seen from the `spread` of undisturbed runs; empty: nothing."""
    low, high = undisturbed["low"], undisturbed["high"]
    if low <= score <= high:
        return ""
    return f"score {score:.3f} is not where undisturbed runs lie: {low:.3f} to {high:.3f}"


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 where everything held, 1 otherwise."""
    why_not = enter_private_mounts("benchmarks.chaos", arguments)
    options = dict(a.split("=", 1) for a in arguments)
    names = options.pop("faults", "")
    undisturbed = int(options.pop("undisturbed", "4"))
    chosen = [f for f in FAULTS if not names or f.name in names.split(",")]
    settings = [*SETTINGS, *(f"{key}={value}" for key, value in options.items())]
    directory = Path(tempfile.mkdtemp(prefix="gleaner-chaos-"))
    print(f"runs and their logs: {directory}", flush=True)
    scores = [_undisturbed(directory / f"undisturbed-{i}", settings, i) for i in range(undisturbed)]
    with two_nodes(HEAD_CPUS, SECOND_CPUS) as nodes:
        disk = None if why_not else SmallDisk(directory / "chaos")
        run = WatchedRun(directory / "chaos", [*settings, "trainer.seed=0"], nodes, disk)
        try:
            outcomes = run_with_faults(run, chosen, lambda text: print(text, flush=True))
            problems = problems_of(run)
        finally:
            run.stop()
            if disk is not None:
                disk.keep(directory / "chaos-kept")
    result: dict[str, Any] = {
        "settings": settings,
        "faults": [asdict(outcome) for outcome in outcomes],
        "full_disk": f"injected, for mounting failed: {why_not}" if why_not else "a small tmpfs",
        "score": score_of(run.run_dir),
        "undisturbed": scores,
        "ledger": _counts(run.run_dir),
    }
    if len(scores) > 1:
        result["spread"] = spread(scores)
        if problem := score_problem(result["score"], result["spread"]):
            problems.append(problem)
    problems += [problem for outcome in outcomes for problem in outcome.problems()]
    result["problems"] = problems
    path = write_benchmark("chaos", result)
    _tell(result, path)
    return 1 if problems else 0


def _undisturbed(run_dir: Path, settings: Sequence[str], seed: int) -> float:
    run = WatchedRun(run_dir, [*settings, f"trainer.seed={seed}"])
    try:
        if run.process.wait() != 0:
            raise RuntimeError(f"an undisturbed run failed:\n{run.said[-3000:]}")
    finally:
        run.stop()
    score = score_of(run_dir)
    print(f"undisturbed, seed {seed}: {score:.1%}", flush=True)
    return score


def _counts(run_dir: Path) -> dict[str, int]:
    view = read_ledger(run_dir / LEDGER)
    again = sum(row.issues > 1 for row in view.rows)
    return {**{str(s): n for s, n in view.counts().items()}, "issued_again": again}


def _tell(result: Mapping[str, Any], path: Path) -> None:
    for problem in result["problems"]:
        print(f"PROBLEM: {problem}")
    print(f"score after all that: {result['score']:.1%}; undisturbed: {result.get('spread', '-')}")
    print(f"ledger: {result['ledger']}")
    print(f"the full disk: {result['full_disk']}")
    print(f"{len(result['faults'])} faults, {len(result['problems'])} problems; {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
