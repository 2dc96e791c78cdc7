"""``python -m pipeline train``: evaluate, train, evaluate, export, report."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.commands import prepare
from pipeline.config import GleanerConfig, TrainerConfig
from pipeline.credit import TrajectoryCredit, build_algorithm
from pipeline.driver import Driver, StepResult
from pipeline.journal import DIRECTORY_NAME as JOURNAL
from pipeline.journal import FileJournal, Journal, NoJournal
from pipeline.launch import Stack, open_stack
from pipeline.ledger import FILE_NAME as LEDGER
from pipeline.ledger import Ledger
from pipeline.measure import Measured, measure, training_sampling
from pipeline.metrics import evaluation_metrics
from pipeline.preflight import check_run
from pipeline.progress import Progress, open_progress
from pipeline.run_directory import check_no_run, config_yaml, open_run_directory
from pipeline.run_report import pool_times, shown_trajectories
from pipeline.step_record import RunMeter
from pipeline.summary import build_summary, package_versions, write_summary
from pipeline.tasks.files import read_questions
from pipeline.tracking import check_trackers, open_trackers
from pipeline.types import Question, Trajectory

__all__ = ["measure_split", "question_stream", "run"]

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
    check_no_run(Path(config.run_dir))
    check_run(config)
    check_trackers(config.tracker)
    prepare.run(config)
    train = read_questions(Path(config.task.train))
    test = read_questions(Path(getattr(config.task, config.evaluate.split)))
    test = test[: config.evaluate.limit or None]
    dev = _dev_questions(config)
    run_dir = open_run_directory(config)
    with open_progress(config.tracker.progress) as progress:
        progress.line(f"run directory: {run_dir}")
        results = asyncio.run(_run(config, train, dev, test, run_dir, progress))
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
    train: Sequence[Question],
    dev: Sequence[Question],
    test: Sequence[Question],
    run_dir: Path,
    progress: Progress,
) -> _Results:
    results = _Results()
    began = time.monotonic()
    async with open_stack(config, on_event=progress.line) as stack:
        start = await stack.publisher.publish(0)  # the engines hold just what the learner holds
        results.seconds["setup"] = time.monotonic() - began
        if config.trainer.evaluate_before:
            async with results.timed("evaluate"):
                results.before = await measure_split(config, stack, test, progress)
        before = await pool_times(stack)
        async with results.timed("train"):
            await _train(config, stack, train, dev, run_dir, start.digest, progress, results)
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


async def _train(
    config: GleanerConfig,
    stack: Stack,
    questions: Sequence[Question],
    dev: Sequence[Question],
    run_dir: Path,
    start_digest: str,
    progress: Progress,
    results: _Results,
) -> None:
    resolved = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    limit_s = 60 * config.trainer.minutes
    with (
        open_trackers(config.tracker, run_dir, resolved) as trackers,  # type: ignore[arg-type]
        progress.training(config.trainer.steps, limit_s=limit_s) as training,
        _open_ledger(config, run_dir) as ledger,
    ):

        async def on_step(step: StepResult) -> None:
            due = _evaluation_is_due(config.trainer, step.step)
            evaluated = await _evaluate_on_the_way(config, stack, dev, progress) if due else None
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
            questions=question_stream(questions, config.trainer.seed),
            sampling=training_sampling(config.rollout),
            trainer=config.trainer,
            buffer=config.buffer,
            ledger=ledger,
            journal=_open_journal(config, run_dir, start_digest),
            on_step=on_step,
        )
        await driver.run()


@contextmanager
def _open_ledger(config: GleanerConfig, run_dir: Path) -> Iterator[Ledger]:
    ledger = Ledger(
        run_dir / LEDGER,
        groups_per_step=config.buffer.groups_per_step,
        max_staleness=config.buffer.max_staleness,
    )
    try:
        yield ledger
    except BaseException:
        ledger.end(failed=True)
        raise
    ledger.end()


def _open_journal(config: GleanerConfig, run_dir: Path, start_digest: str) -> Journal:
    if not config.trainer.journal:
        return NoJournal()
    journal = FileJournal(run_dir / JOURNAL)
    journal.published(0, start_digest)
    return journal


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
