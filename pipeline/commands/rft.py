"""``python -m pipeline rft``: the baseline without RL, rejection-sampling fine-tuning.

The starting policy samples groups of training questions; its correct trajectories are what a
supervised step (negative log-likelihood of the policy's own tokens) is made on. The sampler
stays the starting policy throughout. It ends after ``rft.trained_tokens`` policy tokens, so that
it compares with an RL run at equal trained tokens. Source: Yuan et al., arXiv 2308.01825.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.commands import prepare
from pipeline.commands.train import measure_split, question_stream
from pipeline.config import GleanerConfig
from pipeline.credit.assign import make_sample
from pipeline.errors import GleanerError
from pipeline.evaluation import evaluate
from pipeline.launch import Stack, open_stack
from pipeline.measure import training_sampling
from pipeline.preflight import check_run
from pipeline.progress import Progress, open_progress
from pipeline.run_directory import open_run_directory
from pipeline.summary import build_summary, write_summary
from pipeline.tasks.files import read_questions
from pipeline.types import Question, Sample, Trajectory

__all__ = ["run", "supervised_sample"]

_BARREN_BATCHES = 20  # without a correct sample, after which it gives up


def run(config: GleanerConfig) -> None:
    """Evaluate, fine-tune, evaluate; the run directory is like that of the train command."""
    config = replace(
        config,
        algorithm=replace(config.algorithm, name="rft", loss="nll", kl_coef=0.0),
        trainer=replace(config.trainer, minibatches_per_step=1),
    )
    check_run(config)
    prepare.run(config)
    test = read_questions(Path(getattr(config.task, config.evaluate.split)))
    test = test[: config.evaluate.limit or None]
    questions = question_stream(read_questions(Path(config.task.train)), config.trainer.seed)
    run_dir = open_run_directory(config)
    with open_progress(config.tracker.progress) as progress:
        asyncio.run(_run(config, questions, test, run_dir, progress))
        progress.line(f"numbers: {run_dir / 'summary.json'}")


def supervised_sample(trajectory: Trajectory) -> Sample:
    """A sample whose every policy token has advantage 1 and loss weight 1."""
    return make_sample(trajectory, np.ones(len(trajectory.rounds)), 1.0)


async def _run(
    config: GleanerConfig,
    questions: Iterator[Question],
    test: list[Question],
    run_dir: Path,
    progress: Progress,
) -> None:
    began = time.monotonic()
    async with open_stack(config, on_event=progress.line) as stack:
        await stack.publisher.publish(0)
        setup_s = time.monotonic() - began
        before = await measure_split(config, stack, test, progress)
        fine_tuning = time.monotonic()
        steps, tokens = await _fine_tune(config, stack, questions, progress)
        train_s = time.monotonic() - fine_tuning
        await stack.learner.export_policy(run_dir / "policy")
        await stack.publisher.publish(1)
        after = await measure_split(config, stack, test, progress)
    total_s = time.monotonic() - began
    summary = build_summary(
        profile=config.profile,
        algorithm=config.algorithm.name,
        seed=config.trainer.seed,
        steps=steps,
        seconds={"setup": setup_s, "train": train_s, "evaluate": total_s - setup_s - train_s},
        before=before.main,
        after=after.main,
        before_sampled=before.sampled,
        after_sampled=after.sampled,
        staleness_tokens={},
        trained_tokens=tokens,
        trajectories_per_s=0.0,
    )
    write_summary(run_dir / "summary.json", summary)


async def _fine_tune(
    config: GleanerConfig, stack: Stack, questions: Iterator[Question], progress: Progress
) -> tuple[int, int]:
    """Optimizer steps made and policy tokens trained on."""
    steps = tokens = barren = 0
    budget = config.rft.trained_tokens
    with progress.phase("rejection-sampling fine-tuning, policy tokens", total=budget) as phase:
        while tokens < budget:
            asked = list(islice(questions, config.rft.groups_per_step))
            samples = [supervised_sample(t) for t in await _correct(config, stack, asked)]
            if not samples:
                barren += 1
                if barren == _BARREN_BATCHES:
                    raise GleanerError(
                        f"{barren} batches in a row had no correct sample: the policy never solves "
                        "these questions; choose easier ones, or warm-start it"
                    )
                continue
            barren = 0
            normaliser = float(sum(s.loss_mask.sum() for s in samples))
            await stack.learner.train_step(samples, normaliser)
            steps, tokens = steps + 1, tokens + int(normaliser)
            phase.reach(min(tokens, budget))
    return steps, tokens


async def _correct(
    config: GleanerConfig, stack: Stack, questions: list[Question]
) -> list[Trajectory]:
    played = await evaluate(
        stack.rollout,
        questions,
        name="rft",
        sampling=training_sampling(config.rollout),
        samples=config.buffer.group_size,
        concurrency=config.evaluate.concurrency,
    )
    return [t for t in played.flat() if t.correct]
