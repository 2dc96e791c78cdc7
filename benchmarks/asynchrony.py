"""``make bench-async``: how near the pipeline comes to the time that its work needs.

    python -m benchmarks.asynchrony [rounds=5] [steps=3] [key=value ...]

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
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.limit import Limit, seconds_where
from benchmarks.paired import interval_of_median, write_benchmark
from pipeline.commands import prepare
from pipeline.commands.train import question_stream
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.credit import Algorithm, build_algorithm
from pipeline.curriculum import Curriculum
from pipeline.driver import Driver, Start, StepResult, judge_group
from pipeline.failpoints import VARIABLE
from pipeline.journal import NoJournal
from pipeline.launch import Stack, open_stack
from pipeline.ledger import Ledger
from pipeline.measure import training_sampling
from pipeline.overrides import compose_config
from pipeline.step_record import RunMeter
from pipeline.tasks.files import read_questions
from pipeline.trace import Recorder, Span
from pipeline.types import Group, Question, RolloutRequest

STALENESS = (0, 1, 2)
LATENCY_S = 0.2
SETTINGS = ("experiment=cpu_default", "learner.lr=0", "trainer.stall_s=0")
UNLOADED = 24  # trajectories played one at a time
ALONE_GROUPS = 64
ALONE_REPEATS = 5
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Moment:
    """What was spent until now."""

    at: float  # on the spans' clock
    cpu_s: Mapping[str, float]  # by stage
    done: Mapping[str, float]  # totals of the pools

    def since(self, before: Moment) -> Moment:
        """What was spent in between; ``at`` is its length."""
        return Moment(
            self.at - before.at,
            {k: v - before.cpu_s.get(k, 0.0) for k, v in self.cpu_s.items()},
            {k: v - before.done.get(k, 0.0) for k, v in self.done.items()},
        )


@dataclass
class Bench:
    """The pools, and what is measured on them."""

    config: GleanerConfig
    stack: Stack
    faults: Path
    questions: Curriculum
    version: int = 0
    asked: int = 0
    clock: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.algorithm: Algorithm = build_algorithm(self.config.algorithm, self.config.correction)

    @contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """Every call to a retriever or a judge takes so much longer."""
        files = [self.faults / place for place in ("retriever", "judge")]
        for file in files if seconds else ():
            file.write_text(f"slow {seconds}")
        yield
        for file in files:
            file.unlink(missing_ok=True)

    def question(self) -> Question:
        """The next one."""
        self.asked += 1
        return self.questions.next(self.asked)

    async def moment(self) -> Moment:
        """Now."""
        stats: Counter[str] = Counter()
        for name, (pool, _) in self.stack.pools().items():
            stats.update({f"{name}/{key}": value for key, value in (await pool.stats()).items()})
        return Moment(self.clock.now(), await self._cpu_s(), stats)

    async def _cpu_s(self) -> dict[str, float]:
        """CPU seconds by stage: each pool's processes; all others of the run orchestrate."""
        hosts = self.stack.hosts()
        answers = await asyncio.gather(*(h.ping.remote() for h in hosts.values()))
        pool_of = {a.pid: name.split("-")[0] for name, a in zip(hosts, answers, strict=True)}
        spent: dict[str, float] = defaultdict(float)
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            spent[pool_of.get(process.pid, "orchestrate")] += times.user + times.system
        return dict(spent)

    async def play(self, count: int, at_once: int, samples: int = 0) -> list[Group]:
        """``count`` groups, ``at_once`` under way."""
        room = asyncio.Semaphore(at_once)

        async def one(ticket: int) -> Group:
            async with room:
                return await self.stack.rollout.rollout(
                    RolloutRequest(
                        question=self.question(),
                        group_id=ticket,
                        num_samples=samples or self.config.buffer.group_size,
                        admission_version=self.version,
                        sampling=training_sampling(self.config.rollout),
                    )
                )

        return list(await asyncio.gather(*(one(ticket) for ticket in range(count))))

    async def quiet(self) -> None:
        """Wait until nothing is under way that an ended driver left."""
        busy = -1.0
        while (now := (await self.stack.rollout.stats())["busy_s"]) != busy:
            busy = now
            await asyncio.sleep(1.0)


@dataclass(frozen=True, slots=True)
class Alone:
    """What each stage costs alone, in core-seconds, by who spends them."""

    trajectory: Mapping[str, float]  # one that is played; retrieval included
    judged_round: Mapping[str, float]
    step: Mapping[str, float]  # an optimizer step of groups_per_step groups
    publish: Mapping[str, float]
    unloaded_s: Mapping[str, float]  # latency -> seconds of one trajectory, its judge included
    searches: float  # a trajectory


async def measure_alone(bench: Bench) -> Alone:
    """Every stage on otherwise idle pools."""
    buffer = bench.config.buffer
    played: list[Group] = []

    async def spent(work: Callable[[], Awaitable[Any]], units: Callable[[], float]) -> Any:
        before = await bench.moment()
        await work()
        used = (await bench.moment()).since(before)
        return {stage: seconds / units() for stage, seconds in used.cpu_s.items()}

    async def play() -> None:
        played.extend(await bench.play(ALONE_GROUPS, 2 * buffer.groups_per_step))

    per_trajectory = await spent(play, lambda: sum(len(g.trajectories) for g in played))
    kept = [g for g in played if bench.algorithm.has_signal(g)]
    judged: list[Group] = []

    async def judge() -> None:
        for _ in range(ALONE_REPEATS):
            judged[:] = [await judge_group(bench.stack.judge, bench.algorithm, g) for g in kept]

    per_round = await spent(judge, lambda: max(1, ALONE_REPEATS * _num_judged_rounds(judged)))
    batch = judged[: buffer.groups_per_step]
    credit = bench.algorithm.credit(batch)

    async def update() -> None:
        for _ in range(ALONE_REPEATS):
            await bench.stack.learner.train_step(credit.samples, credit.normaliser, bench.version)

    async def publish() -> None:
        for _ in range(ALONE_REPEATS):
            bench.version += 1
            await bench.stack.publisher.publish(bench.version)

    await update()  # once unmeasured
    step = await spent(update, lambda: ALONE_REPEATS * len(batch) / buffer.groups_per_step)
    publishing = await spent(publish, lambda: ALONE_REPEATS)
    unloaded = {}
    for name, seconds in LATENCIES.items():
        with bench.latency(seconds):
            unloaded[name] = await _unloaded_s(bench)
    trajectories = [t for g in played for t in g.trajectories]
    return Alone(
        trajectory=per_trajectory,
        judged_round=per_round,
        step=step,
        publish=publishing,
        unloaded_s=unloaded,
        searches=statistics.mean(len(t.search_rounds) for t in trajectories),
    )


async def _unloaded_s(bench: Bench) -> float:
    """Of one trajectory while nothing else happens."""
    began = time.monotonic()
    for group in await bench.play(UNLOADED, at_once=1, samples=1):
        await bench.stack.judge.judge(group.trajectories)
    return (time.monotonic() - began) / UNLOADED


def _num_judged_rounds(groups: Sequence[Group]) -> int:
    rounds = (r for g in groups for t in g.trajectories for r in t.search_rounds)
    return sum(r.verdict is not None for r in rounds)


async def one_turn(
    bench: Bench, staleness: int, latency: str, steps: int, alone: Alone
) -> dict[str, Any]:
    """Some train steps at this staleness, and where their time went."""
    config, first, meter = bench.config, bench.version, RunMeter()
    filled = first + 1 + staleness  # steps until the pipeline is full
    moments: list[Moment] = []
    stalls: list[float] = []

    async def on_step(step: StepResult) -> None:
        meter.step(step)
        if step.step >= filled:
            moments.append(await bench.moment())
            stalls.append(step.publish.stall_s)

    driver = Driver(
        rollout=bench.stack.rollout,
        judge=bench.stack.judge,
        learner=bench.stack.learner,
        publisher=bench.stack.publisher,
        algorithm=bench.algorithm,
        questions=bench.questions,
        sampling=training_sampling(config.rollout),
        trainer=replace(config.trainer, steps=filled + steps, minutes=0.0),
        buffer=replace(config.buffer, max_staleness=staleness),
        ledger=Ledger(groups_per_step=config.buffer.groups_per_step, max_staleness=staleness),
        journal=NoJournal(),
        on_step=on_step,
        start=Start(version=first),
    )
    with bench.latency(LATENCIES[latency]):
        await driver.run()
    bench.version = filled + steps
    await bench.quiet()
    used = moments[-1].since(moments[0])
    spans = {"driver": driver.spans(), **await bench.stack.spans()}
    records = meter.records[-steps:]
    finished = sum(
        r.metrics["rollout/trajectories_per_s"] * r.metrics["step/seconds"] for r in records
    )
    limit = _limit(bench, alone, latency, staleness, steps, finished, used)
    ages: Counter[int] = Counter()
    for record in records:
        ages.update(record.staleness_tokens)
    return {
        "latency": latency,
        "staleness": staleness,
        "seconds_a_step": used.at / steps,
        "trained_trajectories_per_s": (
            steps * config.buffer.groups_per_step * config.buffer.group_size / used.at
        ),
        "finished_trajectories": finished,
        "phi": limit.seconds / used.at,
        "limit_s": limit.seconds / steps,
        "terms_s": {name: value / steps for name, value in limit.terms().items()},
        "binding": limit.binding,
        "cpu_share": sum(used.cpu_s.values()) / (CORES * used.at),
        "cpu_s": {stage: s / steps for stage, s in used.cpu_s.items()},
        **_where_time_went(spans, moments[0].at, moments[-1].at),
        "stalls_s": stalls,
        "staleness_tokens": dict(sorted(ages.items())),
        "failed": sum(r.metrics["buffer/failed"] for r in records),
    }


def _limit(
    bench: Bench,
    alone: Alone,
    latency: str,
    staleness: int,
    steps: int,
    finished: float,
    used: Moment,
) -> Limit:
    """For the work that the turn really did."""
    rounds = used.done["judge/rounds"]
    parts = [
        (alone.trajectory, finished),
        (alone.judged_round, rounds),
        (alone.step, steps),
        (alone.publish, steps),
    ]
    cost_s: dict[str, float] = defaultdict(float)
    for each, units in parts:
        for stage, seconds in each.items():
            cost_s[stage] += seconds * units
    config = bench.config
    slots = (staleness + 1) * config.buffer.groups_per_step * config.buffer.group_size
    return Limit(
        cost_s=dict(cost_s),
        cores=CORES,
        threads={
            "rollout": config.rollout.threads * config.rollout.num_actors,
            "retriever": config.retriever.threads * config.retriever.num_actors,
            "learner": config.learner.threads * config.learner.num_actors,
            "orchestrate": CORES,
        },
        trajectories=finished,
        outside_s=LATENCIES[latency] * (alone.searches + 1),
        concurrency=slots,
        unloaded_s=alone.unloaded_s[latency],
        slots=slots,
    )


def _where_time_went(
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
    training = read_questions(Path(config.task.train))
    stream = question_stream(training, config.trainer.seed)
    questions = Curriculum(stream, len(training), config.curriculum)
    turns = []
    async with open_stack(config, on_event=_say) as stack:
        bench = Bench(config, stack, faults, questions)
        await stack.publisher.publish(0)
        await bench.play(config.buffer.groups_per_step, config.buffer.groups_per_step)  # warm
        _say("every stage alone")
        alone = await measure_alone(bench)
        _say(f"core-seconds of a trajectory: {_short(alone.trajectory)}, a step: "
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
        "alone": {
            "trajectory": alone.trajectory,
            "judged_round": alone.judged_round,
            "step": alone.step,
            "publish": alone.publish,
            "unloaded_s": alone.unloaded_s,
        },
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
    return float(turn["finished_trajectories"])


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
    rounds, steps = int(options.pop("rounds", "5")), int(options.pop("steps", "3"))
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
