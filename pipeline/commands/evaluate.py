"""``python -m pipeline evaluate policy=DIR questions=FILE[,FILE]``: a table per question set.

Works for any policy directory or hub name, any question file of the field's formats, against
an index of ours or any ``/retrieve`` endpoint (``retriever=http retriever.url=...``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.atomic import write_text
from pipeline.commands import prepare
from pipeline.config import GleanerConfig
from pipeline.errors import UserError
from pipeline.launch import open_stack
from pipeline.measure import Measured, measure
from pipeline.preflight import check_run
from pipeline.progress import Progress, open_progress
from pipeline.run_directory import open_run_directory
from pipeline.summary import evaluation_summary
from pipeline.tasks.files import read_questions
from pipeline.types import Question

__all__ = ["run"]


def run(config: GleanerConfig) -> None:
    """Evaluate and print; ``evaluation.json`` in the run directory has the numbers."""
    check_run(config, learner=False)
    sets = _question_sets(config)
    run_dir = open_run_directory(config)
    with open_progress(config.tracker.progress) as progress:
        results = asyncio.run(_run(config, sets, progress))
    numbers = {name: _numbers(measured) for name, measured in results.items()}
    write_text(run_dir / "evaluation.json", json.dumps(numbers, indent=2) + "\n")
    Console().print(_table(config.policy.path, numbers))
    print(f"numbers: {run_dir / 'evaluation.json'}")


def _question_sets(config: GleanerConfig) -> dict[str, list[Question]]:
    """The asked question files by name; without any, the task's split (made where missing)."""
    names = [part.strip() for part in config.evaluate.questions.split(",") if part.strip()]
    if not names or not config.retriever.url:
        prepare.run(config, questions=not names)
    if not names:
        names = [getattr(config.task, config.evaluate.split)]
    paths = [Path(name) for name in names]
    if len({path.stem for path in paths}) < len(paths):
        raise UserError("two question files have the same name; rename one of them")
    limit = config.evaluate.limit or None
    return {path.stem: read_questions(path)[:limit] for path in paths}


async def _run(
    config: GleanerConfig, sets: Mapping[str, list[Question]], progress: Progress
) -> dict[str, Measured]:
    results = {}
    async with open_stack(config, learner=False, on_event=progress.line) as stack:
        for name, questions in sets.items():
            results[name] = await measure(
                stack.rollout,
                questions,
                name=name,
                config=config.evaluate,
                rollout=config.rollout,
                progress=progress,
            )
    return results


def _numbers(measured: Measured) -> dict[str, Any]:
    """JSON of one question set: one entry a way of playing it."""
    ways = {
        "main": measured.main,
        "sampled": measured.sampled,
        "without_search": measured.without_search,
    }
    return {
        way: {
            "temperature": evaluation.sampling.temperature,
            "failures": evaluation.failures,
            **evaluation_summary(evaluation.trajectories),
        }
        for way, evaluation in ways.items()
        if evaluation is not None
    }


def _table(policy: str, numbers: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title=f"exact match of {policy}, 95 % intervals")
    for column in (
        "set",
        "way",
        "questions",
        "k",
        "exact match",
        "pass@k",
        "searches",
        "redundant",
    ):
        table.add_column(column, justify="left" if column in ("set", "way") else "right")
    for name, ways in numbers.items():
        for way, found in ways.items():
            for hops, em in ({"": found["em"]} | _hop_rows(found)).items():
                table.add_row(*_row(name, way, hops, em, found))
    return table


def _hop_rows(found: Mapping[str, Any]) -> dict[str, Any]:
    by_hops = found["em_by_hops"]
    return {f"{hops}-hop": em for hops, em in by_hops.items()} if len(by_hops) > 1 else {}


def _row(name: str, way: str, hops: str, em: Any, found: Mapping[str, Any]) -> tuple[str, ...]:
    if hops:
        return ("", f"  {hops}", str(em["n"]), "", _interval(em), "", "", "")
    how = {"main": "greedy" if found["temperature"] == 0 else f"T={found['temperature']:g}"}
    passed = found.get("pass_at_k")
    return (
        name,
        how.get(way, way.replace("_", " ")),
        str(found["questions"]),
        str(found["samples_per_question"]),
        _interval(em),
        _interval(passed) if passed else "",
        f"{found['searches_per_question']:.2f}",
        _interval(found["redundant_searches"]),
    )


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"
