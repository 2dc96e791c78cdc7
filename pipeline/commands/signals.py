"""``python -m pipeline signals policy=DIR``: is the task worth judging?

Plays ``evaluate.limit`` questions of ``evaluate.split`` (one sample each at the training
temperature), judges every search round, and prints the judge's u x v table. Each signal should
be 1 in 10 to 90 % of rounds and the two should differ in at least 10 %: else the task is too
easy for credit assignment to matter.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.atomic import write_text
from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.evaluation import evaluate
from pipeline.launch import open_stack
from pipeline.measure import training_sampling
from pipeline.preflight import check_run
from pipeline.progress import open_progress
from pipeline.run_directory import open_run_directory
from pipeline.tasks.files import read_questions
from pipeline.types import Question, Trajectory

__all__ = ["run", "signal_table"]


def run(config: GleanerConfig) -> None:
    """Print the table; ``signals.json`` in the run directory has the numbers."""
    check_run(config, learner=False)
    prepare.run(config)
    questions = read_questions(Path(getattr(config.task, config.evaluate.split)))
    questions = questions[: config.evaluate.limit or None]
    run_dir = open_run_directory(config)
    trajectories = asyncio.run(_play_and_judge(config, questions))
    numbers = signal_table(trajectories)
    write_text(run_dir / "signals.json", json.dumps(numbers, indent=2) + "\n")
    Console().print(_rich_table(numbers))
    print(f"numbers: {run_dir / 'signals.json'}")


async def _play_and_judge(config: GleanerConfig, questions: list[Question]) -> list[Trajectory]:
    with open_progress(config.tracker.progress) as progress:
        async with open_stack(config, learner=False, on_event=progress.line) as stack:
            with progress.phase("play, to be judged", total=len(questions)) as phase:
                played = await evaluate(
                    stack.rollout,
                    questions,
                    name=config.evaluate.split,
                    sampling=training_sampling(config.rollout),
                    samples=1,
                    concurrency=config.evaluate.concurrency,
                    on_progress=phase.reach,
                )
            trajectories = played.flat()
            verdicts = await stack.judge.judge(trajectories)
    return [t.with_verdicts(v) for t, v in zip(trajectories, verdicts, strict=True)]


def signal_table(trajectories: list[Trajectory]) -> dict[str, Any]:
    """Counts of judged rounds by (u, v), and the shares that the task is checked by."""
    verdicts = [r.verdict for t in trajectories for r in t.search_rounds if r.verdict]
    cells = Counter((round(v.utility), round(v.correctness)) for v in verdicts)
    total = max(1, len(verdicts))
    return {
        "trajectories": len(trajectories),
        "rounds": len(verdicts),
        "table": {f"u{u}v{v}": cells[u, v] for u in (0, 1) for v in (0, 1)},
        "u_share": (cells[1, 0] + cells[1, 1]) / total,
        "v_share": (cells[0, 1] + cells[1, 1]) / total,
        "differ_share": (cells[0, 1] + cells[1, 0]) / total,
        "exact_match": sum(t.correct for t in trajectories) / max(1, len(trajectories)),
    }


def _rich_table(numbers: dict[str, Any]) -> Table:
    table = Table(
        title=f"{numbers['rounds']} search rounds of {numbers['trajectories']} trajectories"
    )
    for column in ("", "v = 0", "v = 1"):
        table.add_column(column, justify="right")
    for u in (0, 1):
        cells = (numbers["table"][f"u{u}v{v}"] for v in (0, 1))
        table.add_row(f"u = {u}", *(f"{c} ({c / max(1, numbers['rounds']):.1%})" for c in cells))
    table.caption = (
        f"u = 1 in {numbers['u_share']:.1%}, v = 1 in {numbers['v_share']:.1%}, "
        f"u differs from v in {numbers['differ_share']:.1%}"
    )
    return table
