"""``python -m pipeline attack judge=... traces=FILE``: can the judge be talked into anything?

Makes ``audit.attempts`` attempts of every attack (``pipeline/judging/attacks.py``) on rounds of
labelled traces that earn nothing, and counts how often a signal that is 0 by right, and that the
judge gave as 0 without the attack, becomes 1. Writes ``attacks.json`` to the run directory:

    {attack: {"where", "says", "attempts", "no_verdict",
              "utility": {"attacked", "turned", "rate", "low", "high"}, "correctness": {...}}}

``attacked`` counts the attempts in which the signal could turn, ``turned`` those in which it did;
``low`` and ``high`` are Wilson's 95 % interval of the rate. ``no_verdict``: the judge gave none
under the attack, which earns nothing either.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.atomic import write_text
from pipeline.config import GleanerConfig
from pipeline.errors import UserError
from pipeline.judging.attacks import Attack, Attempt, attempts
from pipeline.judging.traces import read_traces
from pipeline.launch import open_judge
from pipeline.pools import JudgePool
from pipeline.progress import Progress, open_progress
from pipeline.run_directory import open_run_directory
from pipeline.statistics import wilson
from pipeline.types import Trajectory, Verdict

__all__ = ["attack_judge", "run"]

_SIGNALS = ("utility", "correctness")
_TOGETHER = 32  # attempts judged at once


def run(config: GleanerConfig) -> None:
    """Attack, print and write. Raises UserError where there is nothing to attack."""
    if not config.audit.traces:
        raise UserError(
            "attack needs labelled traces: traces=FILE (python -m pipeline traces makes one)"
        )
    traces = read_traces(Path(config.audit.traces))
    made = list(attempts(traces, per_attack=config.audit.attempts, seed=config.trainer.seed))
    if not made:
        raise UserError(f"{config.audit.traces}: no round has a label that is 0: nothing to attack")
    run_dir = open_run_directory(config)
    with open_progress(config.tracker.progress) as progress:
        numbers = asyncio.run(_attack(config, made, progress))
    write_text(run_dir / "attacks.json", json.dumps(numbers, indent=2) + "\n")
    Console().print(_table(numbers))
    print(f"numbers: {run_dir / 'attacks.json'}")


async def _attack(
    config: GleanerConfig, made: Sequence[Attempt], progress: Progress
) -> dict[str, Any]:
    async with open_judge(config) as judge:
        with progress.phase("attack the judge", total=len(made)) as phase:
            return await attack_judge(judge, made, on_progress=phase.reach)


@dataclass(slots=True)
class _Count:
    """Outcomes of one attack."""

    attack: Attack
    attempts: int = 0
    no_verdict: int = 0
    attacked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SIGNALS, 0))
    turned: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SIGNALS, 0))

    def add(self, attempt: Attempt, before: Verdict | None, after: Verdict | None) -> None:
        """An attempt more; ``before`` is None where the attack adds the round."""
        self.attempts += 1
        if after is None:
            self.no_verdict += 1
            return
        for signal in attempt.must_stay_0:
            if attempt.clean is not None and (before is None or getattr(before, signal) >= 0.5):
                continue  # it was wrong already: nothing to turn
            self.attacked[signal] += 1
            self.turned[signal] += getattr(after, signal) >= 0.5

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "where": self.attack.where,
            "says": self.attack.says,
            "attempts": self.attempts,
            "no_verdict": self.no_verdict,
            **{s: _rate(self.turned[s], self.attacked[s]) for s in _SIGNALS},
        }


async def attack_judge(
    judge: JudgePool, made: Sequence[Attempt], *, on_progress: Any = lambda done: None
) -> dict[str, Any]:
    """What came of the attempts, attack by attack (see the module). Raises what the judge
    raises."""
    counts: dict[str, _Count] = {}
    for start in range(0, len(made), _TOGETHER):
        some = made[start : start + _TOGETHER]
        cleans = [a.clean for a in some if a.clean is not None]
        verdicts = iter(await _judge(judge, [*cleans, *(a.attacked for a in some)]))
        befores = {id(c): next(verdicts) for c in cleans}
        for attempt in some:
            after = next(verdicts)[attempt.number - 1]
            before = befores[id(attempt.clean)][attempt.number - 1] if attempt.clean else None
            count = counts.setdefault(attempt.attack.name, _Count(attempt.attack))
            count.add(attempt, before, after)
        on_progress(start + len(some))
    return {name: count.numbers() for name, count in counts.items()}


async def _judge(
    judge: JudgePool, trajectories: Sequence[Trajectory]
) -> list[tuple[Verdict | None, ...]]:
    return await judge.judge(trajectories)


def _rate(turned: int, attacked: int) -> dict[str, Any]:
    if not attacked:
        return {"attacked": 0, "turned": 0, "rate": None, "low": None, "high": None}
    estimate = wilson(turned, attacked)
    return {
        "attacked": attacked,
        "turned": turned,
        "rate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
    }


def _table(numbers: dict[str, Any]) -> Table:
    table = Table(title="signals that are 0 by right and were turned to 1, 95 % intervals")
    for column in ("attack", "by", "attempts", "utility", "correctness", "no verdict"):
        table.add_column(column, justify="left" if column in ("attack", "by") else "right")
    for name, found in numbers.items():
        table.add_row(
            name,
            found["where"],
            str(found["attempts"]),
            *(_cell(found[signal]) for signal in _SIGNALS),
            str(found["no_verdict"]),
        )
    return table


def _cell(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "-"
    return (
        f"{rate['turned']} of {rate['attacked']} "
        f"({100 * rate['low']:.0f} to {100 * rate['high']:.0f} %)"
    )
