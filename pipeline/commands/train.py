"""``python -m pipeline train``: evaluate, train, evaluate, export, report.

With ``resume=auto`` a run that died in ``run_dir`` goes on where it was (``pipeline.resume``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.atomic import write_bytes, write_text
from pipeline.codec import decode, encode
from pipeline.commands import prepare
from pipeline.config import GleanerConfig, TrainerConfig
from pipeline.credit import TrajectoryCredit, build_algorithm
from pipeline.driver import Driver, StepResult
from pipeline.journal import DIRECTORY_NAME as JOURNAL
from pipeline.journal import read_journal
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
    open_checkpoints,
    open_journal,
)
from pipeline.run_directory import check_no_run, config_yaml, open_run_directory
from pipeline.run_report import pool_times, shown_trajectories
from pipeline.step_record import RunMeter
from pipeline.summary import build_summary, package_versions, write_summary
from pipeline.tasks.files import read_questions
from pipeline.trace import write_trace
from pipeline.tracking import check_trackers, open_trackers
from pipeline.types import Question, Trajectory

__all__ = ["measure_split", "question_stream", "run"]

logger = logging.getLogger(__name__)

TRACE = "trace.json"
_BEFORE = "evaluation_before.msgpack"
_SHOWN_FROM_TRAINING = 256  # latest trained trajectories that the report may choose from


@dataclass(slots=True)
class _Results:
    """What a run has found so far."""

    before: Measured | None = None
    after: Measured | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    meter: RunMeter = field(default_factory=RunMeter)
    trained: list[Trajectory] = field(default_factory=list)
    credits: list[TrajectoryCredit] = field(default_factory=list)  # of ``trained``
    pools: list[Any] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)

    @asynccontextmanager
    async def timed(self, phase: str) -> AsyncIterator[None]:
        """Add the block's wall time to ``seconds[phase]``."""
        began = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began


def run(config: GleanerConfig) -> None:
    """Run the whole of it; the run directory says what came out. Raises GleanerError."""
    interrupted = find_interrupted(config)
    if interrupted is None:
        check_no_run(Path(config.run_dir))
    elif interrupted.is_done and interrupted.published >= config.trainer.steps:
        print(f"the run in {config.run_dir} has ended; raise trainer.steps to train on")
        return
    check_run(config)
    check_trackers(config.tracker)
    prepare.run(config)
    train = read_questions(Path(config.task.train))
    test = read_questions(Path(getattr(config.task, config.evaluate.split)))
    test = test[: config.evaluate.limit or None]
    dev = _dev_questions(config)
    run_dir = open_run_directory(config, resumed=interrupted is not None)
    logger.info("the driver is process %d", os.getpid())
    with open_progress(config.tracker.progress) as progress:
        progress.line(f"run directory: {run_dir}")
        results = asyncio.run(_run(config, interrupted, train, dev, test, run_dir, progress))
        _write_results(config, results, run_dir)
        _say_where(results, run_dir, progress)


def _dev_questions(config: GleanerConfig) -> list[Question]:
    """The questions of the evaluations during training; none where there are no such."""
    trainer = config.trainer
    if not (trainer.evaluate_every or trainer.evaluate_at):
        return []
    split = Path(getattr(config.task, trainer.evaluate_on))
    return read_questions(split)[: config.evaluate.limit or None]


def question_stream(questions: Sequence[Question], seed: int) -> Iterator[Question]:
    """The questions for ever, every epoch in another order that ``seed`` fixes."""
    for epoch in itertools.count():
        order = list(range(len(questions)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        yield from (questions[i] for i in order)


async def _run(
    config: GleanerConfig,
    interrupted: Interrupted | None,
    train: Sequence[Question],
    dev: Sequence[Question],
    test: Sequence[Question],
    run_dir: Path,
    progress: Progress,
) -> _Results:
    results = _Results()
    began = time.monotonic()
    life = interrupted.ledger.resumes + 1 if interrupted else 0
    async with open_stack(config, life=life, on_event=progress.line) as stack:
        version = 0
        if interrupted:
            version = await interrupted.restore(
                stack.learner, open_checkpoints(config), progress.line
            )
            progress.line(f"the run goes on after step {version}")
        # the engines hold just what the learner holds
        published = await stack.publisher.publish(version)
        results.seconds["setup"] = time.monotonic() - began
        results.before = await _measured_before(config, stack, test, version, progress, results)
        before = await pool_times(stack)
        async with results.timed("train"):
            await _train(
                config, stack, interrupted, train, dev, run_dir, published, progress, results
            )
        await stack.learner.export_policy(run_dir / "policy")  # first: an evaluation may fail
        results.pools = await pool_times(stack, since=before, records=results.meter.records)
        if config.trainer.evaluate_after:
            async with results.timed("evaluate"):
                results.after = await measure_split(config, stack, test, progress)
        if config.report.enabled:
            results.shown = await shown_trajectories(
                stack.judge,
                build_algorithm(config.algorithm, config.correction),
                before=results.before,
                after=results.after,
                training=results.trained,
                trained=results.credits,
                count=config.report.trajectories,
            )
    return results


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


async def _measured_before(
    config: GleanerConfig,
    stack: Stack,
    test: Sequence[Question],
    version: int,
    progress: Progress,
    results: _Results,
) -> Measured | None:
    """The starting policy's evaluation: made now, or earlier in a run that was resumed."""
    kept = Path(config.run_dir) / _BEFORE
    if kept.exists():
        return decode(kept.read_bytes(), Measured)
    if version or not config.trainer.evaluate_before:
        return None
    async with results.timed("evaluate"):
        measured = await measure_split(config, stack, test, progress)
    write_bytes(kept, encode(measured))
    return measured


async def _train(
    config: GleanerConfig,
    stack: Stack,
    interrupted: Interrupted | None,
    questions: Sequence[Question],
    dev: Sequence[Question],
    run_dir: Path,
    published: PublishReport,
    progress: Progress,
    results: _Results,
) -> None:
    resolved = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    limit_s = 60 * config.trainer.minutes
    stream, version, start = (
        question_stream(questions, config.trainer.seed),
        published.version,
        None,
    )
    with contextlib.ExitStack() as opened:
        ledger = opened.enter_context(_open_ledger(config, interrupted, version))
        if interrupted:
            start = interrupted.start(ledger.view(), stream, version)
            results.meter = RunMeter(interrupted.records(version))
        journal = open_journal(config, published.digest, resumed=interrupted is not None)
        checkpoints = open_checkpoints(config)
        if can_replay(config):
            stack.learner.recover_from(
                checkpoints, lambda: read_journal(run_dir / JOURNAL), version
            )
        trackers = opened.enter_context(
            open_trackers(config.tracker, run_dir, resolved, first_step=version + 1)  # type: ignore[arg-type]
        )
        training = opened.enter_context(progress.training(config.trainer.steps, limit_s=limit_s))

        async def on_step(step: StepResult) -> None:
            due = _evaluation_is_due(config.trainer, step.step)
            evaluated = await _evaluate_on_the_way(config, stack, dev, progress) if due else None
            score = evaluated["evaluate/exact_match"] if evaluated else None
            if checkpoints.is_due(step.step, score):
                await checkpoints.save(stack.learner, step.step, step.publish.digest, score)
            record = results.meter.step(step, evaluated)
            trackers.append(record)
            training.record(record)
            results.trained += [t for group in step.groups for t in group.trajectories]
            results.credits += [c for result in step.credits for c in result.trajectories]
            del results.trained[:-_SHOWN_FROM_TRAINING], results.credits[:-_SHOWN_FROM_TRAINING]

        driver = Driver(
            rollout=stack.rollout,
            judge=stack.judge,
            learner=stack.learner,
            publisher=stack.publisher,
            algorithm=build_algorithm(config.algorithm, config.correction),
            questions=stream,
            sampling=training_sampling(config.rollout),
            trainer=config.trainer,
            buffer=config.buffer,
            ledger=ledger,
            journal=journal,
            on_step=on_step,
            start=start,
            deterministic_seed=config.trainer.seed if config.deterministic else None,
            on_stall=lambda diagnosis: _write_stacks(stack, run_dir, diagnosis),
        )
        await driver.run()
        if config.report.trace:
            spans = {"driver": driver.spans(), **await stack.spans()}
            write_trace(run_dir / TRACE, spans)


async def _write_stacks(stack: Stack, run_dir: Path, diagnosis: str) -> None:
    """``stacks-N.txt``, for the person who wonders why a run stands still."""
    number = len(list(run_dir.glob("stacks-*.txt"))) + 1
    write_text(run_dir / f"stacks-{number}.txt", f"{diagnosis}\n\n{await stack.stacks()}")


@contextmanager
def _open_ledger(
    config: GleanerConfig, interrupted: Interrupted | None, version: int
) -> Iterator[Ledger]:
    if interrupted:
        ledger = interrupted.open_ledger(config, version)
    else:
        ledger = Ledger(
            Path(config.run_dir) / LEDGER,
            groups_per_step=config.buffer.groups_per_step,
            max_staleness=config.buffer.max_staleness,
        )
    try:
        yield ledger
    except BaseException:
        ledger.end(failed=True)
        raise
    ledger.end()


def _evaluation_is_due(trainer: TrainerConfig, step: int) -> bool:
    every = trainer.evaluate_every
    return step in trainer.evaluate_at or (bool(every) and step % every == 0)


async def _evaluate_on_the_way(
    config: GleanerConfig, stack: Stack, questions: Sequence[Question], progress: Progress
) -> Mapping[str, float]:
    """A greedy evaluation on ``trainer.evaluate_on`` while training goes on."""
    greedy = replace(config.evaluate, temperature=0.0, samples=1, sampled=0, without_search=False)
    measured = await measure(
        stack.rollout,
        questions,
        name=config.trainer.evaluate_on,
        config=greedy,
        rollout=config.rollout,
        progress=progress,
    )
    return evaluation_metrics(measured.main.flat())


def _write_results(config: GleanerConfig, results: _Results, run_dir: Path) -> None:
    meter, before, after = results.meter, results.before, results.after
    evaluations: dict[str, Any] = {
        "before": before.main if before else None,
        "after": after.main if after else None,
        "before_sampled": before.sampled if before else None,
        "after_sampled": after.sampled if after else None,
    }
    summary = build_summary(
        profile=config.profile,
        algorithm=config.algorithm.name,
        seed=config.trainer.seed,
        steps=len(meter.records),
        seconds=results.seconds,
        staleness_tokens=meter.staleness_tokens,
        trained_tokens=meter.trained_tokens,
        trajectories_per_s=meter.num_trajectories / meter.elapsed_s if meter.elapsed_s else 0.0,
        **evaluations,
    )
    write_summary(run_dir / "summary.json", summary)
    if not config.report.enabled:
        return
    from pipeline.report import ReportData, write_report

    data = ReportData(
        summary=summary,
        records=meter.records,
        shown=results.shown,
        pools=results.pools,
        train_s=meter.elapsed_s,
        staleness_tokens=meter.staleness_tokens,
        config_yaml=config_yaml(config),
        versions=package_versions(),
        trace=TRACE if (run_dir / TRACE).exists() else "",
        **evaluations,
    )
    write_report(run_dir / "report.html", data)


def _say_where(results: _Results, run_dir: Path, progress: Progress) -> None:
    for name, measured in (("before", results.before), ("after", results.after)):
        if measured:
            flat = measured.main.flat()
            right = sum(t.correct for t in flat)
            progress.line(f"exact match {name}: {right / len(flat):.1%} of {len(flat)}")
    progress.line(f"trained policy: {run_dir / 'policy'}")
    progress.line(f"numbers:        {run_dir / 'summary.json'}")
    if (run_dir / "report.html").exists():
        progress.line(f"report:         {run_dir / 'report.html'}")
