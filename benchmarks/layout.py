"""``make bench-layout``: how actors and threads should be laid out on this machine.

    python -m benchmarks.layout [rounds=3] [steps=3] [layouts=cpu,cpu_two_engines] [key=value ...]

Each layout of ``conf/cluster/layout/`` for CPUs trains on the default task, in turn, on pools of
its own, with learning rate 0: every step is the same work. What counts is the time of a step for
each token that was sampled (chance filters more groups in one turn than in another), over that of
the default layout in the same round; and CPU seconds likewise.

Results: ``benchmarks/results/layout.json``.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paired import interval_of_median, write_benchmark
from benchmarks.stack_bench import CORES, SAME_WORK, Bench
from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.launch import open_stack
from pipeline.overrides import compose_config

DEFAULT = "cpu"
LAYOUTS = (DEFAULT, "cpu_two_engines", "cpu_two_threads", "cpu_learner_threads")


async def measure(config: GleanerConfig, steps: int) -> dict[str, float]:
    """Milliseconds and CPU milliseconds of a sampled token, on pools of its own."""
    async with open_stack(config) as stack:
        bench = Bench(config, stack)
        await bench.warm_up()
        turn = await bench.train(steps, config.buffer.max_staleness)
    return {
        "ms": 1000 * turn.used.at / turn.sampled_tokens,
        "cpu_ms": 1000 * sum(turn.used.cpu_s.values()) / turn.sampled_tokens,
        "cpu_share": sum(turn.used.cpu_s.values()) / (CORES * turn.used.at),
        "seconds_a_step": turn.used.at / steps,
    }


def rows_of(turns: Sequence[Mapping[str, Any]], layouts: Sequence[str]) -> list[dict[str, Any]]:
    """A row a layout: medians over the rounds, and the ratios of the default layout's times to its
    own in the same round."""
    of = {name: [t for t in turns if t["layout"] == name] for name in layouts}
    rows = []
    for name, mine in of.items():
        row: dict[str, Any] = {"layout": name}
        for key in ("ms", "cpu_ms"):
            ratios = [d[key] / t[key] for d, t in zip(of[DEFAULT], mine, strict=True)]
            low, high = interval_of_median(ratios)
            row[key] = statistics.median(t[key] for t in mine)
            row[f"speedup_{key}"] = {"median": statistics.median(ratios), "low": low, "high": high}
        rows.append({**row, "cpu_share": statistics.median(t["cpu_share"] for t in mine)})
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure, write and print."""
    options = dict(a.split("=", 1) for a in arguments)
    rounds, steps = int(options.pop("rounds", "3")), int(options.pop("steps", "3"))
    chosen = options.pop("layouts", "")
    layouts = [
        name for name in LAYOUTS if name == DEFAULT or not chosen or name in chosen.split(",")
    ]
    overrides = [*SAME_WORK, *(f"{key}={value}" for key, value in options.items())]
    configs = {
        name: to_config(compose_config([*overrides, f"cluster/layout={name}"])) for name in layouts
    }
    prepare.run(configs[DEFAULT])
    turns = []
    for number in range(rounds):
        for name in layouts if number % 2 == 0 else reversed(layouts):
            turn = asyncio.run(measure(configs[name], steps))
            turns.append({"round": number, "layout": name, **turn})
            print(f"round {number + 1} of {rounds}, {name}: {turn['ms']:.2f} ms a sampled token, "
                  f"{turn['cpu_ms']:.2f} CPU ms", flush=True)  # fmt: skip
    rows = rows_of(turns, layouts)
    path = write_benchmark("layout", {"settings": overrides, "rows": rows, "turns": turns})
    print(f"numbers: {path}")
    for row in rows:
        faster, thriftier = row["speedup_ms"], row["speedup_cpu_ms"]
        print(f"{row['layout']}: {faster['median']:.2f}x as fast as {DEFAULT} "
              f"({faster['low']:.2f} to {faster['high']:.2f}), "
              f"{thriftier['median']:.2f}x as much a CPU-second")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
