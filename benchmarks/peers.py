"""``make bench-peers``: the same task by other libraries' trainers, on this machine.

    python -m benchmarks.peers [pairs=3] [steps=3] [rows=16] [threads=2] [key=value ...]

Ours and TRL's GRPOTrainer (``benchmarks/peer_trl.py``) take turns (A B B A): default task, policy,
learning rate and trajectories a step. TRL generates by transformers, its way that runs unchanged on
a CPU, and computes a context anew in every round. What counts is the time of some train steps: of
ours once the pipeline is full (whatever was played before is trained by then), and with more steps
to come. Every trajectory of TRL's counts as trained, also those of groups whose rewards are all
equal, which teach nothing; of ours only those that were trained on: ours plays others in their
place, and that is in its time. ``with_signal`` compares only what teaches.

Results: ``benchmarks/results/peers.json``. Ratios are printed last.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paired import interval_of_median, write_benchmark
from benchmarks.watched_run import WatchedRun
from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.overrides import compose_config

SETTINGS = (
    "experiment=cpu_default",
    "trainer.minutes=0",
    "trainer.evaluate_before=false",
    "trainer.evaluate_after=false",
    "report.enabled=false",
    "tracker.tensorboard=false",
    "checkpoint.every=0",
)
PEER_LIMIT_S = 3600.0


def measure_ours(directory: Path, settings: Sequence[str], steps: int) -> dict[str, float]:
    """Seconds and CPU seconds of ``steps`` train steps."""
    first = to_config(compose_config(settings)).buffer.max_staleness + 2
    last = first + steps
    run = WatchedRun(directory / "ours", [*settings, f"trainer.steps={last + 2}"])
    try:
        run.wait_for_step(first)
        began, cpu_s = time.monotonic(), run.cpu_s()
        run.wait_for_step(last)
        took_s, cpu_s = time.monotonic() - began, run.cpu_s() - cpu_s
    finally:
        run.stop()
    return {"seconds": took_s, "cpu_s": cpu_s, "signal_share": 1.0}


def measure_trl(
    directory: Path, settings: Sequence[str], steps: int, options: Sequence[str]
) -> dict[str, float]:
    """The same of TRL's."""
    out = directory / "trl.json"
    command = [sys.executable, "-m", "benchmarks.peer_trl", f"out={out}", f"steps={steps + 1}"]
    done = subprocess.run(
        [*command, *options, *settings, f"run_dir={directory}"],
        capture_output=True, text=True, timeout=PEER_LIMIT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"TRL failed:\n{done.stderr[-3000:]}")
    ended = json.loads(out.read_text())
    return {
        "seconds": ended[-1]["at"] - ended[0]["at"],
        "cpu_s": ended[-1]["cpu_s"] - ended[0]["cpu_s"],
        "signal_share": 1 - statistics.mean(e["without_signal"] for e in ended[1:]),
    }


def ratios_of(pairs: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Ours over TRL's, pair by pair: median and interval."""
    kinds = {
        "per_second": [p["trl"]["seconds"] / p["ours"]["seconds"] for p in pairs],
        "per_cpu_second": [p["trl"]["cpu_s"] / p["ours"]["cpu_s"] for p in pairs],
        "per_second_with_signal": [
            p["trl"]["seconds"] / p["ours"]["seconds"] / p["trl"]["signal_share"] for p in pairs
        ],
    }
    found = {}
    for name, values in kinds.items():
        low, high = interval_of_median(values)
        found[name] = {"median": statistics.median(values), "low": low, "high": high}
    return found


def run(
    config: GleanerConfig, settings: Sequence[str], pairs: int, steps: int, options: Sequence[str]
) -> dict[str, Any]:
    """All pairs."""
    trajectories = steps * config.buffer.groups_per_step * config.buffer.group_size
    measured: list[dict[str, dict[str, float]]] = []
    for i in range(pairs):
        pair: dict[str, dict[str, float]] = {}
        for name in ("ours", "trl") if i % 2 == 0 else ("trl", "ours"):
            with tempfile.TemporaryDirectory(prefix="gleaner-peers-") as directory:
                if name == "ours":
                    pair[name] = measure_ours(Path(directory), settings, steps)
                else:
                    pair[name] = measure_trl(Path(directory), settings, steps, options)
            rate = trajectories / pair[name]["seconds"]
            print(f"pair {i + 1} of {pairs}, {name}: {rate:.2f} trajectories/s, "
                  f"{trajectories / pair[name]['cpu_s']:.2f} a CPU-second", flush=True)  # fmt: skip
        measured.append(pair)
    return {"trajectories": trajectories, "pairs": measured, "ratios": ratios_of(measured)}


def main(arguments: Sequence[str]) -> None:
    """Measure, write and print."""
    options = dict(a.split("=", 1) for a in arguments)
    pairs, steps = int(options.pop("pairs", "3")), int(options.pop("steps", "3"))
    of_peer = [f"{key}={options.pop(key)}" for key in ("rows", "threads") if key in options]
    settings = [*SETTINGS, *(f"{key}={value}" for key, value in options.items())]
    config = to_config(compose_config(settings))
    prepare.run(config)
    result = run(config, settings, pairs, steps, of_peer)
    path = write_benchmark("peers", {"settings": settings, "peer_options": of_peer, **result})
    print(f"numbers: {path}")
    for name, ratio in result["ratios"].items():
        what = f"trained trajectories {name.replace('_', ' ')}"
        print(f"ours over TRL's GRPOTrainer with transformers, {what}: {ratio['median']:.2f}x "
              f"({ratio['low']:.2f} to {ratio['high']:.2f})")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
