"""``python -m pipeline warmstart``: makes the small default policy from scratch.

Scripts episodes on the task's training questions, trains a tokenizer and a small Qwen3 model on
them in two phases (clean, then bad habits), measures both on dev with the real rollout engine,
and writes the policy with its model card.
"""

from __future__ import annotations

import asyncio
import copy
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_section
from pipeline.preflight import check_builds, check_disk
from pipeline.warmstart import materials
from pipeline.warmstart.card import model_card, policy_figures
from pipeline.warmstart.config import WarmstartConfig
from pipeline.warmstart.school import Curriculum, attend, publish_policy
from pipeline.warmstart.script import Scripter

__all__ = ["run", "warmstart_config"]


def run(config: GleanerConfig) -> None:
    """Make the policy at ``warmstart.output``; what was there stays until all is measured."""
    started = time.monotonic()
    settings = warmstart_config(config.warmstart)
    check_disk(Path(settings.output), 1.0)
    if settings.measure:
        check_builds("gpu" if config.rollout.num_gpus > 0 else "cpu")
    prepare.run(config)
    curriculum = _curriculum(config, settings)
    attend(curriculum, settings)
    trained_s = time.monotonic() - started
    clean, habits = (directory for _, _, directory in curriculum.phases)
    figures: dict[str, Any] = {}
    if settings.measure:
        figures = {
            "clean": asyncio.run(_measure(config, clean)),
            "policy": asyncio.run(_measure(config, habits)),
        }
    command = "python -m pipeline " + " ".join(["warmstart", *_overrides()])
    card = model_card(settings, Path(config.task.dir), habits, figures, command, trained_s)
    publish_policy(habits, Path(settings.output), card=card, figures=figures)
    print(f"policy: {settings.output} (card: README.md); ceiling: {settings.clean_output}")


def warmstart_config(section: Any) -> WarmstartConfig:
    """The ``warmstart`` section as a dataclass.

    Raises:
        UserError: for an unknown key or a value of the wrong type.
    """
    return to_section(section, WarmstartConfig, "warmstart", "pipeline/warmstart/config.py")


def _overrides() -> list[str]:
    return [a for a in sys.argv[1:] if a != "warmstart"]


def _curriculum(config: GleanerConfig, settings: WarmstartConfig) -> Curriculum:
    questions = materials.read_plans(Path(config.task.train))
    passages = materials.read_passages(Path(config.task.corpus))
    book = materials.write_book(questions, settings.book, seed=settings.seed)
    print(f"warmstart: {len(questions):,} questions; asking the retriever", flush=True)
    table = materials.retrieval_table(config, settings, questions, book, passages)
    scripter = Scripter(retrieve=table, book=book, max_rounds=config.protocol.max_rounds)
    start = Path(settings.start) if settings.start else None
    tokenizer = (
        materials.read_tokenizer(start)
        if start
        else materials.teach_tokenizer(questions, table, scripter, settings)
    )
    work = Path(settings.clean_output)
    return Curriculum(
        questions=questions,
        book=book,
        table=table,
        tokenizer=tokenizer,
        protocol=config.protocol,
        max_model_len=config.policy.max_model_len,
        phases=[
            ("clean", settings.clean, work),
            ("habits", settings.habits, work.with_name("habits")),
        ],
        start=start,
    )


async def _measure(config: GleanerConfig, policy: Path) -> dict[str, Any]:
    """Dev figures of a policy directory, by the rollout engine of a run."""
    from pipeline.commands.signals import signal_table
    from pipeline.launch import open_stack
    from pipeline.measure import measure
    from pipeline.progress import open_progress

    config = copy.deepcopy(config)
    config.policy.path = str(policy)
    config.evaluate.temperature, config.evaluate.samples = 0.0, 1
    config.evaluate.sampled, config.evaluate.sampled_limit = 8, 0
    config.evaluate.without_search = True
    plans = materials.read_plans(Path(config.task.dev))
    with open_progress(config.tracker.progress) as progress:
        async with open_stack(config, learner=False, on_event=progress.line) as stack:
            measured = await measure(
                stack.rollout,
                [plan.question for plan in plans],
                name="dev",
                config=config.evaluate,
                rollout=config.rollout,
                progress=progress,
            )
            assert measured.sampled is not None
            judged = measured.sampled.flat()[:: 8 * len(plans) // 500 or 1][:500]
            verdicts = await stack.judge.judge(judged)
    signals = signal_table([t.with_verdicts(v) for t, v in zip(judged, verdicts, strict=True)])
    return policy_figures(measured, signals)
