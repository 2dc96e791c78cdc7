"""``python -m pipeline traces policy=DIR``: labelled traces of a policy, to audit a judge with.

Plays ``evaluate.limit`` questions of ``evaluate.split`` (or of ``evaluate.questions``),
``evaluate.samples`` samples each at the training temperature, labels every search round by the
question's known evidence, and writes ``traces.jsonl`` to the run directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.episode.evidence import judge_by_evidence
from pipeline.errors import UserError
from pipeline.evaluation import evaluate
from pipeline.judging.traces import LabelledTrace, write_traces
from pipeline.launch import open_stack
from pipeline.measure import training_sampling
from pipeline.preflight import check_run
from pipeline.progress import open_progress
from pipeline.run_directory import open_run_directory
from pipeline.tasks.files import read_questions
from pipeline.types import Question, Trajectory

__all__ = ["label_by_evidence", "play_traces", "run"]


def run(config: GleanerConfig) -> None:
    """Play, label and write."""
    check_run(config, learner=False)
    prepare.run(config, questions=not config.evaluate.questions)
    path = Path(config.evaluate.questions or getattr(config.task, config.evaluate.split))
    questions = read_questions(path)[: config.evaluate.limit or None]
    if all(question.evidence is None for question in questions):
        raise UserError(f"{path}: no question names its evidence (metadata.evidence)")
    run_dir = open_run_directory(config)
    traces = label_by_evidence(asyncio.run(play_traces(config, questions, path.stem)))
    write_traces(run_dir / "traces.jsonl", traces)
    print(f"{len(traces):,} labelled traces: {run_dir / 'traces.jsonl'}")


async def play_traces(
    config: GleanerConfig, questions: Sequence[Question], name: str
) -> list[Trajectory]:
    """Rollouts of ``config.policy``, ``evaluate.samples`` a question at the training
    temperature."""
    with open_progress(config.tracker.progress) as progress:
        async with open_stack(config, learner=False, on_event=progress.line) as stack:
            with progress.phase(f"play {name}, to be judged", total=len(questions)) as phase:
                played = await evaluate(
                    stack.rollout,
                    questions,
                    name=name,
                    sampling=training_sampling(config.rollout),
                    samples=config.evaluate.samples,
                    concurrency=config.evaluate.concurrency,
                    on_progress=phase.reach,
                )
    return played.flat()


def label_by_evidence(trajectories: Sequence[Trajectory]) -> list[LabelledTrace]:
    """One trace a trajectory that searched and whose question's evidence is known."""
    return [
        LabelledTrace(
            id=f"{t.question.id}/{t.sample_id}", trajectory=t, labels=judge_by_evidence(t)
        )
        for t in trajectories
        if t.search_rounds and t.question.evidence is not None
    ]
