"""``python -m pipeline attack judge=... traces=FILE``: can the judge be talked into anything?

Makes ``audit.attempts`` attempts of every attack (``pipeline/judging/attacks.py``) on rounds of
labelled traces that earn nothing, and counts how often a signal that is 0 by right, and that the
judge gave as 0 without the attack, becomes 1. Writes ``attacks.json`` to the run directory:

    {"judge": {...}, "source": FILE, "notes": [...],
     "attacks": {attack: {"where", "says", "counts", "known_of", "attempts", "no_verdict",
                          "utility": {"attacked", "turned", "rate", "low", "high", "questions"},
                          "correctness": {...},
                          "others": {"no_verdict", "raised": {"utility": {...},
                                     "correctness": {...}}, "lowered": {...}}}}}

``counts`` says what is counted. ``turns``: ``attacked`` are the attempts in which the signal could
turn, ``turned`` those in which it did. ``errors``: the attack adds a round ("repeated query",
"empty round") and there is no verdict to turn; ``turned`` are those of ``attacked`` that the judge
called 1, so the rate is one of errors, the attack's or the judge's own. The round that "disguised
repetition" adds is compared with the same round undisguised.

``others`` are the trajectory's other rounds, to which the attack does nothing and whose prompts may
hold it: it is in the history of later rounds, and in view of all where a judge is asked about them
``together``. What is the judge's own right verdict without the attack, and turns: ``raised`` from 0
to 1 (where 0 is the label), ``lowered`` from 1 to 0 (weights are relative: less for the others is
more for the attacker), ``no_verdict``: it goes missing. Null for attacks that count ``errors``.

``low`` and ``high`` are the rate's 95 % interval, by ``questions`` (attempts on one question are
not independent): Wilson's with one attempt a question, else a bootstrap; null where it sees no
spread. ``no_verdict``: the judge gave none under the attack.
``known_of``: the backends of ours that are known to fall for it.

A judge that stops half way (its budget, too many failures, a call longer than
``audit.request_timeout_s``) is counted on what it judged, which the notes say.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.atomic import write_text
from pipeline.commands.audit_output import judge_settings
from pipeline.config import GleanerConfig
from pipeline.errors import InfrastructureError, UserError
from pipeline.judging.attacks import Attack, Attempt, attempts
from pipeline.judging.repeats import Asked, ask_judge
from pipeline.judging.traces import LabelledTrace, read_traces
from pipeline.launch import check_open_judge, open_judge
from pipeline.pools import JudgePool
from pipeline.progress import Progress, open_progress
from pipeline.run_directory import open_run_directory
from pipeline.statistics import mean_by_question
from pipeline.types import Trajectory, Verdict

__all__ = ["attack_judge", "attack_numbers", "run"]

_SIGNALS = ("utility", "correctness")
_Verdicts = Sequence[Verdict | None]  # one a search round


def run(config: GleanerConfig) -> None:
    """Attack, print and write. Raises UserError where there is nothing to attack; the error of a
    judge that was lost half way, afterwards."""
    if not config.audit.traces:
        raise UserError(
            "attack needs labelled traces: traces=FILE (python -m pipeline traces makes one)"
        )
    traces = read_traces(Path(config.audit.traces))
    made = list(attempts(traces, per_attack=config.audit.attempts, seed=config.trainer.seed))
    if not made:
        raise UserError(f"{config.audit.traces}: no round has a label that is 0: nothing to attack")
    check_open_judge(config)
    run_dir = open_run_directory(config)
    with open_progress(config.tracker.progress) as progress:
        asked = asyncio.run(_attack(config, made, progress))
    numbers = attack_numbers(made, asked)
    notes = _notes(made, asked, numbers)
    summary = {
        "judge": judge_settings(config.judge),
        "source": config.audit.traces,
        "notes": notes,
        "attacks": numbers,
    }
    write_text(run_dir / "attacks.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    console = Console()
    for table in (_table(numbers), _others_table(numbers)):
        console.print(table)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    print(f"numbers: {run_dir / 'attacks.json'}")
    if isinstance(asked.error, InfrastructureError):
        raise asked.error


async def _attack(config: GleanerConfig, made: Sequence[Attempt], progress: Progress) -> Asked:
    audit = config.audit
    async with open_judge(config) as judge:
        with progress.phase("attack the judge", total=len(_asks(made))) as phase:
            return await attack_judge(
                judge,
                made,
                together=audit.concurrency,
                timeout_s=audit.request_timeout_s,
                on_progress=phase.reach,
            )


async def attack_judge(
    judge: JudgePool,
    made: Sequence[Attempt],
    *,
    together: int,
    timeout_s: float,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Asked:
    """What the judge says with and without the attacks, for `attack_numbers`. Raises what
    `ask_judge` raises."""
    traces = [
        LabelledTrace(id="", trajectory=t, labels=(None,) * len(t.search_rounds))
        for t in _asks(made)
    ]
    return await ask_judge(
        judge,
        traces,
        repeats=1,
        together=together,
        timeout_s=timeout_s,
        on_progress=on_progress,
    )


def _asks(made: Sequence[Attempt]) -> list[Trajectory]:
    """The trajectories to judge, each once: an attempt's two stand side by side, unless the one
    without the attack was asked before."""
    distinct = {id(t): t for a in made for t in (a.clean, a.attacked) if t is not None}
    return list(distinct.values())


def attack_numbers(made: Sequence[Attempt], asked: Asked) -> dict[str, Any]:
    """What came of the attempts, attack by attack (see the module); those that were not judged, or
    not with and without the attack, are left out."""
    judged = {
        id(t): verdicts[0]
        for t, verdicts in zip(_asks(made), asked.verdicts, strict=True)
        if verdicts
    }
    counts: dict[str, _Count] = {}
    for attempt in made:
        after, before = judged.get(id(attempt.attacked)), None
        if attempt.clean is not None:
            before = judged.get(id(attempt.clean))
        if after is None or (attempt.clean is not None and before is None):
            continue
        count = counts.setdefault(attempt.attack.name, _Count(attempt.attack))
        place = attempt.number - 1
        if before is None:
            count.add(attempt, None, after[place])
        else:
            count.add(attempt, before[place], after[place])
            count.add_others(attempt, before, after)
    return {name: count.numbers() for name, count in counts.items()}


class _Outcomes:
    """By signal and question: what came of the signals that could turn, 1 where one did."""

    def __init__(self) -> None:
        self._turned: dict[str, dict[str, list[int]]] = {s: defaultdict(list) for s in _SIGNALS}

    def add(self, signal: str, question: str, turned: bool) -> None:
        """A signal more."""
        self._turned[signal][question].append(int(turned))

    def rates(self) -> dict[str, Any]:
        """For JSON."""
        return {signal: _rate(list(self._turned[signal].values())) for signal in _SIGNALS}


@dataclass(slots=True)
class _Count:
    """Outcomes of one attack, in the attacked round and in the trajectory's others."""

    attack: Attack
    attempts: int = 0
    no_verdict: int = 0
    others_no_verdict: int = 0
    turned: _Outcomes = field(default_factory=_Outcomes)
    raised: _Outcomes = field(default_factory=_Outcomes)
    lowered: _Outcomes = field(default_factory=_Outcomes)

    def add(self, attempt: Attempt, before: Verdict | None, after: Verdict | None) -> None:
        """An attempt more; ``before`` is None where the attack has no baseline."""
        self.attempts += 1
        if after is None:
            self.no_verdict += 1
            return
        for signal in attempt.must_stay_0:
            if self.attack.has_baseline and (before is None or _is_1(before, signal)):
                continue  # it was wrong already: nothing to turn
            self.turned.add(signal, attempt.attacked.question.id, _is_1(after, signal))

    def add_others(self, attempt: Attempt, before: _Verdicts, after: _Verdicts) -> None:
        """What the attempt did to the rounds that it left as they are."""
        for label, was, now in zip(attempt.other_labels, before, after, strict=True):
            if label is None or was is None:
                continue
            if now is None:
                self.others_no_verdict += 1
                continue
            for signal in _SIGNALS:
                right = _is_1(label, signal)
                if _is_1(was, signal) == right:
                    outcomes = self.lowered if right else self.raised
                    turned = _is_1(now, signal) != right
                    outcomes.add(signal, attempt.attacked.question.id, turned)

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "where": self.attack.where,
            "says": self.attack.says,
            "counts": "turns" if self.attack.has_baseline else "errors",
            "known_of": list(self.attack.known_of),
            "attempts": self.attempts,
            "no_verdict": self.no_verdict,
            **self.turned.rates(),
            "others": self._others() if self.attack.has_baseline else None,
        }

    def _others(self) -> dict[str, Any]:
        return {
            "no_verdict": self.others_no_verdict,
            "raised": self.raised.rates(),
            "lowered": self.lowered.rates(),
        }


def _is_1(verdict: Verdict, signal: str) -> bool:
    return bool(getattr(verdict, signal) >= 0.5)


def _rate(turned: Sequence[Sequence[int]]) -> dict[str, Any]:
    """``turned[q]``: the outcomes of question ``q``."""
    estimate = mean_by_question(turned, share=True).as_dict()
    if estimate["low"] == estimate["high"]:  # one question, or a bootstrap that saw no spread
        estimate |= {"low": None, "high": None}
    return {
        "attacked": sum(map(len, turned)),
        "turned": sum(map(sum, turned)),
        "rate": estimate["value"],
        "low": estimate["low"],
        "high": estimate["high"],
        "questions": estimate["n"],
    }


def _notes(made: Sequence[Attempt], asked: Asked, numbers: dict[str, Any]) -> list[str]:
    if asked.error is None:
        return []
    done = sum(found["attempts"] for found in numbers.values())
    return [f"ended early, after {done:,} of {len(made):,} attempts: {asked.error}"]


def _table(numbers: dict[str, Any]) -> Table:
    table = Table(
        title="signals that are 0 by right and came out as 1, 95 % intervals by question",
        caption="turned: judged 0 without the attack. wrong: the attack adds a round, and the rate "
        "is one of errors, not of turns",
    )
    left = ("attack", "by", "counted")
    for column in (*left, "attempts", "utility", "correctness", "no verdict"):
        table.add_column(column, justify="left" if column in left else "right")
    for name, found in numbers.items():
        table.add_row(
            name,
            found["where"],
            "turned" if found["counts"] == "turns" else "wrong",
            str(found["attempts"]),
            *(_cell(found[signal]) for signal in _SIGNALS),
            str(found["no_verdict"]),
        )
    return table


def _others_table(numbers: dict[str, Any]) -> Table:
    table = Table(
        title="the other rounds of the attacked trajectories: right verdicts that turned",
        caption="u, v: utility, correctness. A 1 that another round loses is the attacker's gain",
    )
    columns = ("u 0 to 1", "v 0 to 1", "u 1 to 0", "v 1 to 0", "no verdict")
    for column in ("attack", *columns):
        table.add_column(column, justify="right" if column in columns else "left")
    for name, found in numbers.items():
        if (others := found["others"]) is not None:
            rates = [others[way][signal] for way in ("raised", "lowered") for signal in _SIGNALS]
            counted = [f"{rate['turned']} of {rate['attacked']}" for rate in rates]
            table.add_row(name, *counted, str(others["no_verdict"]))
    return table


def _cell(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "-"
    counted = f"{rate['turned']} of {rate['attacked']}"
    if rate["low"] is None:
        return f"{counted} (no interval)"
    return f"{counted} ({100 * rate['low']:.0f} to {100 * rate['high']:.0f} %)"
