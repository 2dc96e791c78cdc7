"""``python -m pipeline train``: evaluate, train, evaluate, export, report.

With ``resume=auto`` a run that died in ``run_dir`` goes on where it was (``pipeline.resume``).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.atomic import write_bytes, write_text
from pipeline.codec import decode, encode
from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.config_checks import check_training_sampling
from pipeline.credit import build_algorithm
from pipeline.curriculum import Curriculum
from pipeline.driver import Driver, StepResult
from pipeline.journal import DIRECTORY_NAME as JOURNAL
from pipeline.journal import read_journal
from pipeline.judging.spending import SPENT, Spending
from pipeline.judging.traces import read_traces
from pipeline.judging.watch import JudgeWatch
from pipeline.launch import Stack, open_stack
from pipeline.ledger import FILE_NAME as LEDGER
from pipeline.ledger import Ledger
from pipeline.measure import Measured, measure, training_sampling
from pipeline.metrics import evaluation_metrics
from pipeline.pools import PublishReport
from pipeline.preflight import check_run
from pipeline.progress import Progress, open_progress
from pipeline.resume import (
    Interrupted,
    can_replay,
    find_interrupted,
    locked,
    open_checkpoints,
    open_journal,
)
from pipeline.run_directory import check_no_run, open_run_directory
from pipeline.run_report import judge_totals, pool_times, shown_trajectories
from pipeline.run_results import TRACE, RunResults
from pipeline.step_recorder import StepRecorder
from pipeline.tasks.files import read_questions
from pipeline.trace import write_trace
from pipeline.tracking import check_trackers, open_trackers
from pipeline.types import Question

__all__ = ["measure_split", "question_stream", "run"]

logger = logging.getLogger(__name__)

_BEFORE = "evaluation_before.msgpack"


def run(config: GleanerConfig) -> None:
    """Run the whole of it; the run directory says what came out. Raises GleanerError."""
    with locked(Path(config.run_dir)):
        _run(config)


def _run(config: GleanerConfig) -> None:
    interrupted = find_interrupted(config)
    if interrupted is None:
        check_no_run(Path(config.run_dir))
    elif interrupted.is_done and interrupted.published >= config.trainer.steps:
        print(f"the run in {config.run_dir} has ended; raise trainer.steps to train on")
        return
    check_training_sampling(config)
    check_run(config)
    check_trackers(config.tracker)
    prepare.run(config)
    training_run = _Run(config, Path(config.run_dir), interrupted)  # reads the questions
    run_dir = open_run_directory(config, resumed=interrupted is not None)
    logger.info("the driver is process %d", os.getpid())
    with open_progress(config.tracker.progress) as progress:
        progress.line(f"run directory: {run_dir}")
        asyncio.run(training_run.all_of_it(progress))
        training_run.results.write(config, run_dir)
        training_run.results.say_where(run_dir, progress)


def question_stream(questions: Sequence[Question], seed: int) -> Iterator[Question]:
    """The questions for ever, every epoch in another order that ``seed`` fixes."""
    for epoch in itertools.count():
        order = list(range(len(questions)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        yield from (questions[i] for i in order)


async def measure_split(
    config: GleanerConfig, stack: Stack, questions: Sequence[Question], progress: Progress
) -> Measured:
    """Evaluate as ``config.evaluate`` says, by the engines of ``stack``."""
    return await measure(
        stack.rollout,
        questions,
        name=config.evaluate.split,
        config=config.evaluate,
        rollout=config.rollout,
        progress=progress,
    )


@dataclass
class _Run:
    """One life of a training run."""

    config: GleanerConfig
    run_dir: Path
    interrupted: Interrupted | None  # what an earlier life left
    results: RunResults = field(default_factory=RunResults)
    progress: Progress = field(init=False)
    _driver: Driver = field(init=False)

    def __post_init__(self) -> None:
        trainer, evaluate = self.config.trainer, self.config.evaluate
        self._train_questions = self._questions("train")
        self._test = self._questions(evaluate.split)[: evaluate.limit or None]
        on_the_way = trainer.evaluate_every or trainer.evaluate_at
        dev = self._questions(trainer.evaluate_on) if on_the_way else []
        self._dev = dev[: evaluate.limit or None]
        canaries = self.config.judge.canaries
        self._canaries = read_traces(Path(canaries)) if canaries else []
        self._checkpoints = open_checkpoints(self.config)
        self._algorithm = build_algorithm(self.config.algorithm, self.config.correction)

    def _questions(self, split: str) -> list[Question]:
        return read_questions(Path(getattr(self.config.task, split)))

    async def all_of_it(self, progress: Progress) -> None:
        """Start the pools, measure, train, export, measure; ``results`` has what came out."""
        config, results, self.progress = self.config, self.results, progress
        began = time.monotonic()
        life = self.interrupted.ledger.resumes + 1 if self.interrupted else 0
        async with open_stack(config, life=life, on_event=self.progress.line) as stack:
            version = await self._restore(stack)
            # the engines hold just what the learner holds
            published = await stack.publisher.publish(version)
            results.seconds["setup"] = time.monotonic() - began
            results.before = await self._measured_before(stack, version)
            before, unjudged = await pool_times(stack), await judge_totals(stack.judge)
            async with results.timed("train"):
                await self._train(stack, published)
            # first: an evaluation may fail
            await stack.learner.export_policy(self.run_dir / "policy")
            await self._write_trace(stack)
            results.pools = await pool_times(stack, since=before, records=results.meter.records)
            results.judge = await judge_totals(stack.judge, since=unjudged)
            if config.trainer.evaluate_after:
                async with results.timed("evaluate"):
                    results.after = await measure_split(config, stack, self._test, self.progress)
            if config.report.enabled:
                results.shown = await shown_trajectories(
                    stack.judge,
                    self._algorithm,
                    before=results.before,
                    after=results.after,
                    training=results.trained,
                    trained=results.credits,
                    count=config.report.trajectories,
                )

    async def _restore(self, stack: Stack) -> int:
        """The version that the learner holds, brought there where an earlier life got further."""
        if self.interrupted is None:
            return 0
        version = await self.interrupted.restore(
            stack.learner, self._checkpoints, self.progress.line
        )
        self.progress.line(f"the run goes on after step {version}")
        for change in self.interrupted.judge_changes:
            self.progress.line(f"the judge is not as it was: {change}")
            logger.warning("the judge is not as it was: %s", change)
        return version

    async def _measured_before(self, stack: Stack, version: int) -> Measured | None:
        """The starting policy's evaluation: made now, or by an earlier life."""
        kept = self.run_dir / _BEFORE
        if kept.exists():
            return decode(kept.read_bytes(), Measured)
        if version or not self.config.trainer.evaluate_before:
            return None
        async with self.results.timed("evaluate"):
            measured = await measure_split(self.config, stack, self._test, self.progress)
        write_bytes(kept, encode(measured))
        return measured

    async def _train(self, stack: Stack, published: PublishReport) -> None:
        config, version = self.config, published.version
        stream = question_stream(self._train_questions, config.trainer.seed)
        questions = Curriculum(stream, len(self._train_questions), config.curriculum)
        resolved: Any = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
        start = None
        with ExitStack() as opened:
            # the ledger is made last: with it a run has begun
            journal = open_journal(config, published.digest, resumed=self.interrupted is not None)
            ledger = opened.enter_context(self._open_ledger(version))
            if self.interrupted:
                start = self.interrupted.start(ledger.view(), questions, version)
                self.results.go_on_from(self.interrupted.records(version))
            if can_replay(config):
                stack.learner.recover_from(
                    self._checkpoints, lambda: read_journal(self.run_dir / JOURNAL), version
                )
            trackers = opened.enter_context(
                open_trackers(config.tracker, self.run_dir, resolved, first_step=version + 1)
            )
            training = opened.enter_context(
                self.progress.training(config.trainer.steps, limit_s=60 * config.trainer.minutes)
            )
            recorder = StepRecorder(
                run_dir=self.run_dir,
                meter=self.results.meter,
                trackers=trackers,
                training=training,
                evaluate=lambda step: self._evaluated_on_the_way(step, stack),
                checkpoints=self._checkpoints,
                learner=stack.learner,
            )
            if self.interrupted and (left := self.interrupted.unrecorded(version)):
                await recorder.record(left)
            watch = JudgeWatch(
                stack.judge,
                config.judge,
                self._canaries,
                config.trainer.seed,
                Spending(self.run_dir / SPENT),
            )
            driver = Driver(
                rollout=stack.rollout,
                judge=watch,
                learner=stack.learner,
                publisher=stack.publisher,
                algorithm=self._algorithm,
                questions=questions,
                sampling=training_sampling(config.rollout),
                trainer=config.trainer,
                buffer=config.buffer,
                ledger=ledger,
                journal=journal,
                on_step=lambda step: self._after_step(step, recorder, watch),
                start=start,
                deterministic_seed=config.trainer.seed if config.deterministic else None,
                on_stall=lambda diagnosis: self._write_stacks(stack, diagnosis),
                watch_losses=stack.watch_losses,
            )
            try:
                await driver.run()
            finally:
                await watch.count_spent()  # also by calls that nobody waits for any more
            self._driver = driver
            last = self.results.meter.last_step
            if last and not can_replay(config):  # a failure from here on must not undo training
                await self._checkpoints.save(stack.learner, last)

    async def _after_step(
        self, step: StepResult, recorder: StepRecorder, watch: JudgeWatch
    ) -> None:
        step = replace(step, judge=await watch.metrics())
        await recorder.after_step(step)
        self.results.remember(step)

    async def _evaluated_on_the_way(self, step: int, stack: Stack) -> Mapping[str, float] | None:
        """A greedy evaluation on ``trainer.evaluate_on`` while training goes on, where it is
        due."""
        trainer = self.config.trainer
        every = trainer.evaluate_every
        if step not in trainer.evaluate_at and not (every and step % every == 0):
            return None
        measured = await measure(
            stack.rollout,
            self._dev,
            name=trainer.evaluate_on,
            config=replace(
                self.config.evaluate, temperature=0.0, samples=1, sampled=0, without_search=False
            ),
            rollout=self.config.rollout,
            progress=self.progress,
        )
        return evaluation_metrics(measured.main.flat())

    async def _write_trace(self, stack: Stack) -> None:
        """``trace.json``; without it the run is as good."""
        if not self.config.report.trace:
            return
        spans = {"driver": self._driver.spans(), **await stack.spans()}
        try:
            await asyncio.to_thread(write_trace, self.run_dir / TRACE, spans)
        except OSError as error:
            logger.warning("no trace could be written: %s", error)

    async def _write_stacks(self, stack: Stack, diagnosis: str) -> None:
        """``stacks-N.txt``, for the person who wonders why a run stands still."""
        number = len(list(self.run_dir.glob("stacks-*.txt"))) + 1
        text = f"{diagnosis}\n\n{await stack.stacks()}"
        write_text(self.run_dir / f"stacks-{number}.txt", text)

    @contextmanager
    def _open_ledger(self, version: int) -> Iterator[Ledger]:
        if self.interrupted:
            ledger = self.interrupted.open_ledger(self.config, version)
        else:
            ledger = Ledger(
                self.run_dir / LEDGER,
                groups_per_step=self.config.buffer.groups_per_step,
                max_staleness=self.config.buffer.max_staleness,
            )
        try:
            yield ledger
        except BaseException:
            ledger.end(failed=True)
            raise
        ledger.end()
