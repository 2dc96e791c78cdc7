"""Training on pools that stay open: some train steps at a time, and what they spent.

With learning rate 0 every step is the same work, so that turns can be compared.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from pipeline.commands.train import question_stream
from pipeline.config import GleanerConfig
from pipeline.credit import Algorithm, build_algorithm
from pipeline.curriculum import Curriculum
from pipeline.driver import Driver, Start, StepResult
from pipeline.journal import NoJournal
from pipeline.launch import Stack
from pipeline.ledger import Ledger
from pipeline.measure import training_sampling
from pipeline.step_record import RunMeter, StepRecord
from pipeline.tasks.files import read_questions
from pipeline.trace import Recorder, Span
from pipeline.types import Group, Question, RolloutRequest

__all__ = ["CORES", "SAME_WORK", "Bench", "Moment", "Turn"]

CORES = len(os.sched_getaffinity(0))
SAME_WORK = ("learner.lr=0", "trainer.stall_s=0")


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


@dataclass(frozen=True, slots=True)
class Turn:
    """Some train steps, after those that filled the pipeline."""

    steps: int
    began: float  # on the spans' clock
    used: Moment
    records: Sequence[StepRecord]
    spans: Mapping[str, Sequence[Span]]

    @property
    def sampled_tokens(self) -> float:
        """What the engines generated meanwhile: the measure of how much was played. (Trajectories
        that ended are not: more may be under way at the end than at the beginning.)"""
        return self.used.done["rollout/generated_tokens"]


@dataclass
class Bench:
    """The pools, and what is measured on them."""

    config: GleanerConfig
    stack: Stack
    faults: Path | None = None  # directory of the failpoints, where there are any
    version: int = 0
    asked: int = 0
    clock: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.algorithm: Algorithm = build_algorithm(self.config.algorithm, self.config.correction)
        training = read_questions(Path(self.config.task.train))
        stream = question_stream(training, self.config.trainer.seed)
        self.questions = Curriculum(stream, len(training), self.config.curriculum)

    async def warm_up(self) -> None:
        """A publish, and some groups that nobody counts."""
        await self.stack.publisher.publish(self.version)
        await self.play(self.config.buffer.groups_per_step, self.config.buffer.groups_per_step)

    @contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """Every call to a retriever or a judge takes so much longer."""
        if self.faults is None:
            raise ValueError("this bench was opened without failpoints")
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

        async def one() -> Group:
            async with room:
                return await self._group(samples)

        return list(await asyncio.gather(*(one() for _ in range(count))))

    async def play_steadily(self, count: int, at_once: int) -> tuple[Moment, list[Group]]:
        """``count`` groups or a few more, and what they cost while ``at_once`` are under way all
        the time."""
        running = {asyncio.create_task(self._group()) for _ in range(at_once)}
        finished: list[Group] = []
        before, first = None, 0
        while before is None or len(finished) < first + count:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finished += [task.result() for task in done]
            running |= {asyncio.create_task(self._group()) for _ in done}
            if before is None and len(finished) >= at_once:
                before, first = await self.moment(), len(finished)
        used = (await self.moment()).since(before)
        for task in running:
            task.cancel()
        await self.quiet()
        return used, finished[first:]

    async def _group(self, samples: int = 0) -> Group:
        return await self.stack.rollout.rollout(
            RolloutRequest(
                question=self.question(),
                group_id=self.asked,
                num_samples=samples or self.config.buffer.group_size,
                admission_version=self.version,
                sampling=training_sampling(self.config.rollout),
            )
        )

    async def quiet(self) -> None:
        """Wait until nothing is under way that an ended driver left."""
        busy = -1.0
        while (now := (await self.stack.rollout.stats())["busy_s"]) != busy:
            busy = now
            await asyncio.sleep(1.0)

    async def train(self, steps: int, staleness: int) -> Turn:
        """``steps`` train steps at this staleness, once the pipeline is full."""
        config, meter = self.config, RunMeter()
        filled = self.version + 1 + staleness
        moments: list[Moment] = []

        async def on_step(step: StepResult) -> None:
            meter.step(step)
            if step.step in (filled, filled + steps):
                moments.append(await self.moment())

        driver = Driver(
            rollout=self.stack.rollout,
            judge=self.stack.judge,
            learner=self.stack.learner,
            publisher=self.stack.publisher,
            algorithm=self.algorithm,
            questions=self.questions,
            sampling=training_sampling(config.rollout),
            trainer=replace(config.trainer, steps=filled + steps, minutes=0.0),
            buffer=replace(config.buffer, max_staleness=staleness),
            ledger=Ledger(groups_per_step=config.buffer.groups_per_step, max_staleness=staleness),
            journal=NoJournal(),
            on_step=on_step,
            start=Start(version=self.version),
        )
        await driver.run()
        self.version = filled + steps
        await self.quiet()
        began, ended = moments
        spans = {"driver": driver.spans(), **await self.stack.spans()}
        return Turn(steps, began.at, ended.since(began), meter.records[-steps:], spans)
