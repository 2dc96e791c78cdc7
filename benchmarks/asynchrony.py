"""``make bench-async``: how near the pipeline comes to the time that its work needs.

    python -m benchmarks.asynchrony [rounds=3] [steps=8] [key=value ...]

The default task and policy, on one set of pools, with learning rate 0: every step is the same work.
Staleness 0, 1 and 2 take turns (0 1 2, 2 1 0, ...), with and without 200 ms that each call to
retriever and judge takes longer. Each turn fills the pipeline first; what counts is the steps after
that. ``benchmarks/limit.py`` has the limit: costs of every stage alone, in core-seconds, are
measured before, at the number of trajectories under way that a run has.

Results: ``benchmarks/results/async.json``. Ratios are printed last.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limit import Limit, seconds_where
from benchmarks.paired import interval_of_median, write_benchmark
from benchmarks.stack_bench import CORES, SAME_WORK, Bench, Moment, Turn
from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.driver import judge_group
from pipeline.failpoints import VARIABLE
from pipeline.launch import open_stack
from pipeline.overrides import compose_config
from pipeline.trace import Span
from pipeline.types import Group

STALENESS = (0, 1, 2)
LATENCY_S = 0.2
SETTINGS = ("experiment=cpu_default", *SAME_WORK)
UNLOADED = 24  # trajectories played one at a time
ALONE_GROUPS = 32
ALONE_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Alone:
    """What each stage costs alone, in core-seconds, by who spends them."""

    trajectory: Mapping[int, Mapping[str, float]]  # staleness -> of one, searches included
    judged_round: Mapping[str, float]
    step: Mapping[str, float]  # an optimizer step of groups_per_step groups
    publish: Mapping[str, float]
    play_s: Mapping[str, float]  # latency -> seconds of one trajectory on an idle system
    judge_s: Mapping[str, float]  # latency -> seconds of its judge
    searches: float  # a trajectory
    sampled_tokens: float  # a trajectory


def _each(used: Moment, units: float, prefix: str = "") -> dict[str, float]:
    """CPU seconds by stage, of one unit."""
    return {f"{prefix}{stage}": seconds / units for stage, seconds in used.cpu_s.items()}


async def measure_alone(bench: Bench) -> Alone:
    """Every stage on otherwise idle pools, with as much under way as a run has."""
    buffer = bench.config.buffer
    played: list[Group] = []
    trajectory = {}
    for staleness in STALENESS:
        at_once = (staleness + 1) * buffer.groups_per_step
        used, groups = await bench.play_steadily(ALONE_GROUPS, at_once)
        tokens = statistics.mean(t.num_policy_tokens for g in groups for t in g.trajectories)
        trajectory[staleness] = _each(used, used.done["rollout/generated_tokens"] / tokens)
        played += groups
    kept = [g for g in played if bench.algorithm.has_signal(g)]

    async def judge() -> list[Group]:
        return [await judge_group(bench.stack.judge, bench.algorithm, g) for g in kept]

    judged = await judge()
    batch = judged[: buffer.groups_per_step]
    credit = bench.algorithm.credit(batch)

    async def update() -> None:
        await bench.stack.learner.train_step(credit.samples, credit.normaliser, bench.version)

    async def publish() -> None:
        bench.version += 1
        await bench.stack.publisher.publish(bench.version)

    judging = await _repeated(bench, judge)
    updating = await _repeated(bench, update)
    publishing = await _repeated(bench, publish)
    play_s, judge_s = {}, {}
    for name, seconds in LATENCIES.items():
        with bench.latency(seconds):
            play_s[name], judge_s[name] = await _unloaded_s(bench)
    trajectories = [t for g in played for t in g.trajectories]
    return Alone(
        trajectory=trajectory,
        judged_round=_each(judging, max(1, _num_judged_rounds(judged))),
        step=_each(updating, len(batch) / buffer.groups_per_step),
        # an engine loads weights in a thread of its own
        publish=_each(publishing, 1, prefix="publish: "),
        play_s=play_s,
        judge_s=judge_s,
        searches=statistics.mean(len(t.search_rounds) for t in trajectories),
        sampled_tokens=statistics.mean(t.num_policy_tokens for t in trajectories),
    )


async def _repeated(bench: Bench, work: Callable[[], Awaitable[Any]]) -> Moment:
    """What ``work`` takes once, as a mean; the first time is not counted."""
    await work()
    before = await bench.moment()
    for _ in range(ALONE_REPEATS):
        await work()
    used = (await bench.moment()).since(before)
    return replace(used, cpu_s={k: v / ALONE_REPEATS for k, v in used.cpu_s.items()})


async def _unloaded_s(bench: Bench) -> tuple[float, float]:
    """Of one trajectory while nothing else happens: played, and judged."""
    began = time.monotonic()
    groups = await bench.play(UNLOADED, at_once=1, samples=1)
    played = time.monotonic()
    for group in groups:
        await bench.stack.judge.judge(group.trajectories)
    return (played - began) / UNLOADED, (time.monotonic() - played) / UNLOADED


def _num_judged_rounds(groups: Sequence[Group]) -> int:
    rounds = (r for g in groups for t in g.trajectories for r in t.search_rounds)
    return sum(r.verdict is not None for r in rounds)


async def one_turn(
    bench: Bench, staleness: int, latency: str, steps: int, alone: Alone
) -> dict[str, Any]:
    """Some train steps at this staleness, and where their time went."""
    with bench.latency(LATENCIES[latency]):
        turn = await bench.train(steps, staleness)
    limit = _limit(bench.config, alone, latency, staleness, turn)
    seconds, buffer = turn.used.at, bench.config.buffer
    ages: Counter[int] = Counter()
    for record in turn.records:
        ages.update(record.staleness_tokens)
    return {
        "latency": latency,
        "staleness": staleness,
        "seconds_a_step": seconds / steps,
        "trained_trajectories_per_s": steps * buffer.groups_per_step * buffer.group_size / seconds,
        "played_trajectories": turn.sampled_tokens / alone.sampled_tokens,
        "phi": limit.seconds / seconds,
        "limit_s": limit.seconds / steps,
        "terms_s": {name: value / steps for name, value in limit.terms().items()},
        "binding": limit.binding,
        "cpu_share": sum(turn.used.cpu_s.values()) / (CORES * seconds),
        "cpu_s": {stage: s / steps for stage, s in turn.used.cpu_s.items()},
        **where_time_went(turn.spans, turn.began, turn.began + seconds),
        "stalls_s": [record.metrics["publish/stall_s"] for record in turn.records],
        "staleness_tokens": dict(sorted(ages.items())),
        "failed": sum(record.metrics["buffer/failed"] for record in turn.records),
    }


def _limit(config: GleanerConfig, alone: Alone, latency: str, staleness: int, turn: Turn) -> Limit:
    """For the work that the turn really did."""
    played = turn.sampled_tokens / alone.sampled_tokens
    parts = [
        (alone.trajectory[staleness], played),
        (alone.judged_round, turn.used.done["judge/rounds"]),
        (alone.step, turn.steps),
        (alone.publish, turn.steps),
    ]
    cost_s: dict[str, float] = defaultdict(float)
    for each, units in parts:
        for stage, seconds in each.items():
            cost_s[stage] += seconds * units
    trained = turn.steps * config.buffer.groups_per_step * config.buffer.group_size
    slots = (staleness + 1) * config.buffer.groups_per_step * config.buffer.group_size
    judged = trained / played  # only groups with a signal meet the judge
    return Limit(
        cost_s=dict(cost_s),
        cores=CORES,
        threads={
            "rollout": config.rollout.threads * config.rollout.num_actors,
            "retriever": config.retriever.threads * config.retriever.num_actors,
            "learner": config.learner.threads * config.learner.num_actors,
            "orchestrate": CORES,
        },
        trajectories=played,
        outside_s=LATENCIES[latency] * (alone.searches + judged),
        concurrency=slots,
        unloaded_s=alone.play_s[latency] + judged * alone.judge_s[latency],
        slots=slots,
    )


def where_time_went(
    spans: Mapping[str, Sequence[Span]], began: float, ended: float
) -> dict[str, float]:
    """Shares of the time: the learner idle, engines idle, and the learner waiting for a service
    alone (no engine had anything to do)."""
    waits = [s for s in spans["driver"] if s.name == "waiting for groups"]
    engines = [
        s for name in spans if name.startswith("rollout") for s in spans[name] if s.lane == "engine"
    ]
    calls = {
        pool: [s for name in spans if name.startswith(pool) for s in spans[name] if s.name == what]
        for pool, what in (("retriever", "search"), ("judge", "judge"))
    }
    length = ended - began

    def share(all_of: list[Any], none_of: list[Any]) -> float:
        return seconds_where(began, ended, all_of=all_of, none_of=none_of) / length

    return {
        "learner_idle": share([waits], []),
        "rollout_idle": 1 - share([engines], []),
        "retrieval_exposed": share([waits, calls["retriever"]], [engines]),
        "judge_exposed": share([waits, calls["judge"]], [engines, calls["retriever"]]),
    }


LATENCIES = {"none": 0.0, f"{1000 * LATENCY_S:.0f} ms": LATENCY_S}


async def run(config: GleanerConfig, faults: Path, rounds: int, steps: int) -> dict[str, Any]:
    """All turns of all rounds, and what each stage costs alone."""
    turns = []
    async with open_stack(config, on_event=_say) as stack:
        bench = Bench(config, stack, faults)
        await bench.warm_up()
        _say("every stage alone")
        alone = await measure_alone(bench)
        _say(f"core-seconds of a trajectory: {_short(alone.trajectory[1])}, a step: "
             f"{_short(alone.step)}, a publish: {_short(alone.publish)}")  # fmt: skip
        for number in range(rounds):
            for latency in LATENCIES:
                for staleness in STALENESS if number % 2 == 0 else reversed(STALENESS):
                    turn = await one_turn(bench, staleness, latency, steps, alone)
                    turns.append({"round": number, **turn})
                    _say(f"round {number + 1} of {rounds}, latency {latency}, staleness "
                         f"{staleness}: {turn['seconds_a_step']:.2f} s a step, phi "
                         f"{turn['phi']:.2f}")  # fmt: skip
    return {
        "alone": asdict(alone),
        "turns": turns,
    }


def summarise(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each latency and staleness: medians over the rounds, and the ratio to staleness 0
    of the same round."""
    rows = []
    for latency in LATENCIES:
        of = {
            s: [t for t in turns if t["latency"] == latency and t["staleness"] == s]
            for s in STALENESS
        }
        for staleness, mine in of.items():
            ratios = [
                sync["seconds_a_step"] * _work(t) / (t["seconds_a_step"] * _work(sync))
                for sync, t in zip(of[0], mine, strict=True)
            ]
            low, high = interval_of_median(ratios)
            stalls = [1000 * s for t in mine for s in t["stalls_s"]]
            rows.append(
                {
                    "latency": latency,
                    "staleness": staleness,
                    **{name: statistics.median(t[name] for t in mine) for name in _MEDIANS},
                    "stall_ms": {q: float(np.percentile(stalls, q)) for q in (50, 95)},
                    "speedup": {"median": statistics.median(ratios), "low": low, "high": high},
                    "ceiling": statistics.median(
                        sync["seconds_a_step"] / t["limit_s"] * _work(t) / _work(sync)
                        for sync, t in zip(of[0], mine, strict=True)
                    ),
                    "binding": Counter(t["binding"] for t in mine).most_common(1)[0][0],
                }
            )
    return rows


_MEDIANS = (
    "seconds_a_step",
    "trained_trajectories_per_s",
    "phi",
    "cpu_share",
    "learner_idle",
    "rollout_idle",
    "retrieval_exposed",
    "judge_exposed",
)


def _work(turn: Mapping[str, Any]) -> float:
    """Trajectories that the turn played: chance filters more groups in one than in another."""
    return float(turn["played_trajectories"])


def _short(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in values.items() if value > 1e-4)


def _say(text: str) -> None:
    print(text, flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For people, in Markdown."""
    yield (
        "| latency | staleness | s a step | phi | CPU used | learner idle | engine idle | "
        "retrieval exposed | judge exposed | stall p50, p95 ms | over staleness 0 | ceiling |"
    )
    yield "| --- |" + " ---: |" * 11
    for r in rows:
        speedup, stall = r["speedup"], r["stall_ms"]
        yield (
            f"| {r['latency']} | {r['staleness']} | {r['seconds_a_step']:.2f} | {r['phi']:.2f} | "
            f"{r['cpu_share']:.0%} | {r['learner_idle']:.0%} | {r['rollout_idle']:.0%} | "
            f"{r['retrieval_exposed']:.1%} | {r['judge_exposed']:.1%} | {stall[50]:.0f}, "
            f"{stall[95]:.0f} | {speedup['median']:.2f} ({speedup['low']:.2f} to "
            f"{speedup['high']:.2f}) | {r['ceiling']:.2f} |"
        )


def main(arguments: Sequence[str]) -> None:
    """Measure, write and print."""
    options = dict(a.split("=", 1) for a in arguments)
    rounds, steps = int(options.pop("rounds", "3")), int(options.pop("steps", "8"))
    overrides = [*SETTINGS, *(f"{key}={value}" for key, value in options.items())]
    config = to_config(compose_config(overrides))
    prepare.run(config)
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as faults:
        os.environ[VARIABLE] = faults  # before the actors start
        result = asyncio.run(run(config, Path(faults), rounds, steps))
    rows = summarise(result["turns"])
    path = write_benchmark(
        "async",
        {"settings": overrides, "rounds": rounds, "steps": steps, "rows": rows, **result},
    )
    print(f"numbers: {path}")
    for line in table(rows):
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
