"""``make chaos``: a real training run while its parts are killed, frozen and made to fail, in turn.

    python -m benchmarks.chaos [faults=kill-learner,kill-driver] [undisturbed=4] [key=value ...]

After each fault the run must go on: the next train step is recorded within a time limit. At the end
the ledger must add up, every publish have been proven, the journal lead to every published digest
again, and the score lie within the spread of undisturbed runs of the same configuration. The rest
of the arguments go to the run. Results: ``benchmarks/results/chaos.json``.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.paired import write_benchmark
from benchmarks.two_nodes import two_nodes
from benchmarks.watched_run import WatchedRun
from pipeline.ledger import FILE_NAME as LEDGER
from pipeline.ledger_check import problems_of as ledger_problems
from pipeline.ledger_view import GroupState, read_ledger

__all__ = ["FAULTS", "Fault", "Outcome", "run_with_faults"]

HEAD_CPUS, SECOND_CPUS = 3, 1  # the second node has room for an engine, not for the learner
DRIVER, ROLLING_LIMIT_S = "the driver", 60.0
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
class Fault:
    """Something that goes wrong, and how soon the run must make its next step after it. ``process``
    names whose is struck by ``signal``; ``place`` fails by ``words`` for a while; with ``node`` the
    second node is lost, and another takes its place when the run has made its step without."""

    name: str
    limit_s: float
    process: str = ""
    signal: signal.Signals = signal.SIGKILL
    place: str = ""
    words: str = ""
    node: bool = False

    @contextmanager
    def injected(self, run: WatchedRun) -> Iterator[None]:
        """Strike; what fails for a while works again afterwards."""
        if self.process:
            if self.process == DRIVER:  # so that there is something to issue again
                run.wait(lambda: _plays(run), ROLLING_LIMIT_S)
            os.kill(run.processes(self.process)[-1], self.signal)
            yield
            return
        if self.node:
            assert run.nodes is not None
            run.nodes.lose_second()
            yield
            run.nodes.add_second()
            return
        file = run.faults / self.place
        file.write_text(self.words)
        yield
        file.unlink()


def _plays(run: WatchedRun) -> bool:
    """Whether a group is with the engines or the judge."""
    return read_ledger(run.run_dir / LEDGER).counts()[GroupState.ROLLING] > 0


ACTOR_S, DRIVER_S = 60.0, 120.0
FAULTS = (
    Fault("kill-rollout", ACTOR_S, process=r"rollout-[\d.]+"),
    Fault("kill-retriever", ACTOR_S, process=r"retriever-\d+"),
    Fault("kill-judge", ACTOR_S, process=r"judge-\d+"),
    Fault("kill-learner", DRIVER_S, process=r"learner-\d+"),
    Fault("freeze-rollout", ACTOR_S, process=r"rollout-[\d.]+", signal=signal.SIGSTOP),
    Fault("freeze-learner", DRIVER_S, process=r"learner-\d+", signal=signal.SIGSTOP),
    Fault("judge-errors", ACTOR_S, place="judge", words="error"),
    Fault("judge-slow", ACTOR_S, place="judge", words="slow 20"),
    Fault("judge-garbage", ACTOR_S, place="judge", words="garbage"),
    Fault("full-disk-at-checkpoint", ACTOR_S, place="checkpoint", words="full"),
    Fault("lose-node", DRIVER_S, node=True),
    Fault("kill-driver", DRIVER_S, process=DRIVER),
)


@dataclass(frozen=True)
class Outcome:
    """What a fault led to: seconds to the next step, and how long a step takes otherwise."""

    fault: str
    next_step_s: float
    usual_step_s: float
    limit_s: float


def run_with_faults(
    run: WatchedRun, faults: Sequence[Fault], say: Callable[[str], None] = print
) -> list[Outcome]:
    """Let every fault happen, each when a step was made since the last. The run then ends by
    itself.

    Raises TimeoutError where a step does not come at all, RuntimeError where the run fails.
    """
    outcomes = []
    run.wait_for_step(2)
    for fault in faults:
        usual_s = statistics.median(r.metrics["step/seconds"] for r in run.records())
        took_s = 0.0
        with fault.injected(run):
            step = run.records()[-1].step
            for _ in range(3 if fault.place else 1):  # what fails for a while does for three steps
                began, step = time.monotonic(), step + 1
                run.wait_for_step(step)
                took_s = max(took_s, time.monotonic() - began)
        outcomes.append(Outcome(fault.name, took_s, usual_s, fault.limit_s))
        say(f"{fault.name}: next step after {took_s:.1f} s (a step takes {usual_s:.1f} s)")
        run.wait_for_step(run.records()[-1].step + 1)
    if (code := run.process.wait(timeout=3600)) != 0:
        raise RuntimeError(f"the run ended with exit code {code}:\n{run.said[-3000:]}")
    return outcomes


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
    """Range of the scores, and where one more run lies with 95 % probability (Student's t)."""
    n, mean = len(scores), statistics.mean(scores)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(scores) * (1 + 1 / n) ** 0.5
    return {"min": min(scores), "max": max(scores), "low": mean - half, "high": mean + half}


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 where everything held, 1 otherwise."""
    options = dict(a.split("=", 1) for a in arguments)
    names = options.pop("faults", "")
    undisturbed = int(options.pop("undisturbed", "4"))
    chosen = [f for f in FAULTS if not names or f.name in names.split(",")]
    settings = [*SETTINGS, *(f"{key}={value}" for key, value in options.items())]
    directory = Path(tempfile.mkdtemp(prefix="gleaner-chaos-"))
    print(f"runs and their logs: {directory}", flush=True)
    scores = [_undisturbed(directory / f"undisturbed-{i}", settings, i) for i in range(undisturbed)]
    with two_nodes(HEAD_CPUS, SECOND_CPUS) as nodes:
        run = WatchedRun(directory / "chaos", [*settings, "trainer.seed=0"], nodes)
        try:
            outcomes = run_with_faults(run, chosen, lambda text: print(text, flush=True))
            problems = problems_of(run)
        finally:
            run.stop()
    result: dict[str, Any] = {
        "settings": settings,
        "faults": [asdict(outcome) for outcome in outcomes],
        "score": score_of(run.run_dir),
        "undisturbed": scores,
        "ledger": _counts(run.run_dir),
    }
    if len(scores) > 1:
        result["spread"] = spread(scores)
        low = min(result["spread"]["min"], result["spread"]["low"])
        if not low <= result["score"]:
            problems.append(
                f"score {result['score']:.3f} is below that of undisturbed runs: {low:.3f}"
            )
    problems += [
        f"{o.fault}: the next step came after {o.next_step_s:.0f} s, the limit is {o.limit_s:.0f} s"
        for o in outcomes
        if o.next_step_s > o.limit_s
    ]
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
    print(f"{len(result['faults'])} faults, {len(result['problems'])} problems; {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
