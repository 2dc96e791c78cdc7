"""``make bench-peers``: the same task by other libraries' trainers, on this machine.

    python -m benchmarks.peers [pairs=3] [steps=3] [peers=grpo,async_grpo] [grpo.rows=16,64]
        [async_grpo.threads=1,2] [key=value ...]

Ours takes turns (A B B A) with each of TRL's GRPOTrainer (``benchmarks/peer_trl.py``) and
AsyncGRPOTrainer (``benchmarks/peer_trl_async.py``; ours then trains LoRA, too): default task,
policy, learning rate and trajectories a step. GRPOTrainer generates by transformers, its way that
runs unchanged on a CPU, or by vLLM in its own process, which took changes.

Each peer at its best: where an option of its own has several values, every combination is tried for
a step first, and the fastest is compared with. Ours has its defaults. What counts is the time of
some train steps: of ours once the pipeline is full (whatever was played before is trained by then),
and with more steps to come. Every trajectory of TRL's counts as trained, also those of groups whose
rewards are all equal, which teach nothing; of ours only those that were trained on: ours plays
others in their place, and that is in its time. ``with_signal`` compares only what teaches.

Results: ``benchmarks/results/peers.json``. Ratios are printed last.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Peer:
    """Somebody else's trainer: the module that runs it, and what both sides need for it."""

    title: str
    module: str
    settings: tuple[str, ...] = ()
    tried: tuple[str, ...] = ("rows=16,64", "threads=1,2")  # options and their values


PEERS = {
    "grpo": Peer(
        "TRL's GRPOTrainer",
        "benchmarks.peer_trl",
        tried=("generate=transformers,vllm", "rows=16,64", "threads=1,2"),
    ),
    "async_grpo": Peer(
        "TRL's AsyncGRPOTrainer", "benchmarks.peer_trl_async", ("learner.lora_rank=8",)
    ),
}


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


def measure_peer(
    peer: Peer, directory: Path, settings: Sequence[str], steps: int, options: Sequence[str]
) -> dict[str, float]:
    """The same of the peer's, and what else it says of itself (means over the steps)."""
    out = directory / "steps.json"
    command = [sys.executable, "-m", peer.module, f"out={out}", f"steps={steps + 1}"]
    done = subprocess.run(
        [*command, *options, *settings, f"run_dir={directory / 'run'}"],
        capture_output=True, text=True, timeout=PEER_LIMIT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{peer.title} failed:\n{done.stderr[-3000:]}")
    ended = json.loads(out.read_text())
    names = {name for step in ended[1:] for name in step} - {"at", "cpu_s"}
    said = {name: statistics.mean(e.get(name, 0.0) for e in ended[1:]) for name in sorted(names)}
    return {
        "seconds": ended[-1]["at"] - ended[0]["at"],
        "cpu_s": ended[-1]["cpu_s"] - ended[0]["cpu_s"],
        "signal_share": 1 - said.pop("without_signal"),
        **said,
    }


def ratios_of(pairs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Ours over theirs, pair by pair: median and interval."""
    kinds = {
        "per_second": [p["theirs"]["seconds"] / p["ours"]["seconds"] for p in pairs],
        "per_cpu_second": [p["theirs"]["cpu_s"] / p["ours"]["cpu_s"] for p in pairs],
        "per_second_with_signal": [
            p["theirs"]["seconds"] / p["ours"]["seconds"] / p["theirs"]["signal_share"]
            for p in pairs
        ],
    }
    found = {}
    for name, values in kinds.items():
        low, high = interval_of_median(values)
        found[name] = {"median": statistics.median(values), "low": low, "high": high}
    return found


def tune_peer(peer: Peer, settings: Sequence[str], options: Sequence[str]) -> list[dict[str, Any]]:
    """A step of the peer's with every combination of its options; the fastest first.

    ``options`` are ``key=value,value``. With one combination nothing is run.
    """
    values = {key: value.split(",") for key, _, value in (o.partition("=") for o in options)}
    combinations = [
        [f"{key}={value}" for key, value in zip(values, chosen, strict=True)]
        for chosen in itertools.product(*values.values())
    ]
    if len(combinations) == 1:
        return [{"options": combinations[0]}]
    tried: list[dict[str, Any]] = []
    for combination in combinations:
        with tempfile.TemporaryDirectory(prefix="gleaner-peers-") as directory:
            measured = measure_peer(peer, Path(directory), settings, 1, combination)
        tried.append({"options": combination, **measured})
        print(f"{peer.title}, {' '.join(combination)}: {measured['seconds']:.1f} s a step",
              flush=True)  # fmt: skip
    return sorted(tried, key=lambda t: t["seconds"])


def compare(
    peer: Peer, settings: Sequence[str], pairs: int, steps: int, options: Sequence[str]
) -> dict[str, Any]:
    """All pairs with one of them."""
    settings = [*settings, *peer.settings]
    tuning = tune_peer(peer, settings, options)
    options = tuning[0]["options"]
    buffer = to_config(compose_config(settings)).buffer
    trajectories = steps * buffer.groups_per_step * buffer.group_size
    measured: list[dict[str, dict[str, float]]] = []
    for i in range(pairs):
        pair: dict[str, dict[str, float]] = {}
        for name in ("ours", "theirs") if i % 2 == 0 else ("theirs", "ours"):
            with tempfile.TemporaryDirectory(prefix="gleaner-peers-") as directory:
                if name == "ours":
                    pair[name] = measure_ours(Path(directory), settings, steps)
                else:
                    pair[name] = measure_peer(peer, Path(directory), settings, steps, options)
            rate = trajectories / pair[name]["seconds"]
            print(f"pair {i + 1} of {pairs}, {'ours' if name == 'ours' else peer.title}: "
                  f"{rate:.2f} trajectories/s, {trajectories / pair[name]['cpu_s']:.2f} a "
                  "CPU-second", flush=True)  # fmt: skip
        measured.append(pair)
    return {
        "peer": peer.title,
        "settings": settings,
        "peer_options": list(options),
        "tuning": tuning if len(tuning) > 1 else [],
        "trajectories": trajectories,
        "pairs": measured,
        "ratios": ratios_of(measured),
    }


def options_of(name: str, options: Mapping[str, str]) -> list[str]:
    """What is meant for one peer (``grpo.rows=8`` is ``rows=8`` for ``grpo``), and what is tried
    where nothing is given."""
    given = {
        key.removeprefix(f"{name}."): value
        for key, value in options.items()
        if key.startswith(f"{name}.")
    }
    tried = dict(option.split("=", 1) for option in PEERS[name].tried)
    return [f"{key}={value}" for key, value in (tried | given).items()]


def main(arguments: Sequence[str]) -> None:
    """Measure, write and print."""
    options = dict(a.split("=", 1) for a in arguments)
    pairs, steps = int(options.pop("pairs", "3")), int(options.pop("steps", "3"))
    chosen = options.pop("peers", ",".join(PEERS)).split(",")
    of_peers = {key for key in options if key.split(".")[0] in PEERS}
    settings = [
        *SETTINGS, *(f"{key}={value}" for key, value in options.items() if key not in of_peers)
    ]  # fmt: skip
    config: GleanerConfig = to_config(compose_config(settings))
    prepare.run(config)
    results = {
        name: compare(PEERS[name], settings, pairs, steps, options_of(name, options))
        for name in chosen
    }
    path = write_benchmark("peers", results)
    print(f"numbers: {path}")
    for result in results.values():
        for name, ratio in result["ratios"].items():
            what = f"trained trajectories {name.replace('_', ' ')}"
            print(f"ours over {result['peer']}, {what}: {ratio['median']:.2f}x "
                  f"({ratio['low']:.2f} to {ratio['high']:.2f})")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
