"""``python -m pipeline audit judge=... traces=FILE``: how far can a judge be believed?

A judge is asked about search rounds whose labels are known, and compared with the labels:

    python -m pipeline audit judge=small traces=outputs/RUN/traces.jsonl
    python -m pipeline audit judge=openai judge.model=NAME traces=labelled.jsonl audit.limit=200
    python -m pipeline audit judge=openai judge.model=NAME questions=hotpot_dev.json
    python -m pipeline audit judge=openai judge.model=NAME judge.temperature=0.7 \\
        audit.repeats=5 traces=labelled.jsonl

``traces`` is a file of labelled traces: ``python -m pipeline traces`` labels rollouts by known
evidence, ``python -m pipeline label`` has people label them. ``questions`` is a question set with
supporting facts (HotpotQA's JSON), of which search traces are made by script
(``pipeline/judging/scripted.py`` says what their labels are worth); they stay in the run directory
as ``traces.jsonl``. With ``audit.repeats`` above 1 every round is judged so often, past the cache;
at temperature 0 that measures little, and the notes say so.

The run directory gets ``audit.json``, ``verdicts.jsonl`` (every verdict) and, unless
``audit.page=false``, ``audit.html``, where the disagreements can be read.

``audit.json``; an estimate is ``{value, low, high, n}``: the value, its 95 % interval by a
bootstrap over ``n`` questions (Wilson's where a share is 0 or 1 in all of them), null where it
cannot be told (``low`` and ``high`` alone where all resamples are equal, or there is one question):

- ``judge``: the settings that were audited; ``source``: the file; ``notes``: what to bear in mind.
- ``questions``, ``traces``, ``repeats``; ``labelled_by``: traces by who labelled them;
  ``bootstrap``: resamples.
- ``counts``: ``rounds``, of which ``unlabelled``; ``asked`` (each repeat), of which
  ``without_verdict``. Neither unlabelled rounds nor asks without a verdict are in any agreement.
- ``signals``: for ``utility``, ``correctness`` and ``contribution`` (1 where both are):
  ``verdicts`` on labelled rounds, repeats one by one; ``agreement``, Cohen's ``kappa``,
  ``confusion`` ``[[n00, n01], [n10, n11]]`` (rows by label, columns by verdict), ``recall`` and
  ``precision`` by class ``"0"`` and ``"1"``, ``label_share`` and ``verdict_share`` of 1s. A signal
  from one half on counts as 1.
- ``calibration`` (null where there is one verdict a round, 0 or 1): by signal ``rounds``,
  ``brier`` (score), ``ece`` (expected calibration error) and ``bins`` of the confidence, which is
  the mean over repeats.
- ``consistency`` (null without repeats): by signal ``rounds``, ``unanimous`` (share of rounds on
  which all repeats say the same), ``pairwise`` (share of pairs of repeats that do).
- ``by_round``, ``by_length``, ``by_kind``: lists of entries with ``round``, ``quartile`` and
  ``chars`` (shortest and longest: reasoning and passages), or ``kind`` (where traces name it), and
  ``rounds``, ``without_verdict`` and by signal ``agreement``, ``label_share``, ``verdict_share``,
  ``excess`` (the verdicts' share of 1s less the labels').
- ``cost``: ``rounds`` asked, each repeat; ``total`` and ``a_round`` of ``calls``,
  ``prompt_tokens``, ``cached_tokens``, ``completion_tokens``, ``money``, ``call_s`` (waiting for
  answers, summed over calls) and ``seconds`` (of the audit); ``cache_hits``, ``bad_answers``,
  ``failed_calls``, ``over_budget``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.atomic import write_text
from pipeline.commands.audit_output import audit_notes, audit_tables, judge_settings
from pipeline.config import GleanerConfig
from pipeline.errors import InfrastructureError, UserError
from pipeline.judging.audit import audit_summary
from pipeline.judging.hotpot import hotpot_traces
from pipeline.judging.judged import judged_rounds
from pipeline.judging.repeats import Asked, ask_judge, write_verdict_rows
from pipeline.judging.traces import LabelledTrace, read_traces, write_traces
from pipeline.launch import check_open_judge, open_judge
from pipeline.progress import Progress, open_progress
from pipeline.report.audit_page import write_audit_page
from pipeline.run_directory import open_run_directory

__all__ = ["run"]


def run(config: GleanerConfig) -> None:
    """Judge, count, write and print. Raises UserError for unfit input.

    A judge that stops half way (its budget, too many failures) is audited on what it judged; one
    that is lost as well, and the error is raised afterwards.
    """
    traces = _traces(config)
    check_open_judge(config)
    run_dir = open_run_directory(config)
    if config.audit.questions:
        write_traces(run_dir / "traces.jsonl", traces)
    with open_progress(config.tracker.progress) as progress:
        asked = asyncio.run(_judge(config, traces, progress))
    write_verdict_rows(run_dir / "verdicts.jsonl", traces, asked)
    summary = _write(config, run_dir, traces, asked)
    console = Console()
    for table in audit_tables(summary):
        console.print(table)
    for note in summary["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    print(f"numbers: {run_dir / 'audit.json'}")
    if config.audit.page:
        print(f"disagreements: {run_dir / 'audit.html'}")
    if isinstance(asked.error, InfrastructureError):
        raise asked.error


def _traces(config: GleanerConfig) -> list[LabelledTrace]:
    """What is judged: traces with a search round and a label."""
    audit = config.audit
    if audit.questions:
        return hotpot_traces(Path(audit.questions), seed=config.trainer.seed, limit=audit.limit)
    if not audit.traces:
        raise UserError(
            "audit needs labelled rounds: traces=FILE (python -m pipeline traces, or label, makes "
            "one) or questions=FILE (a question set with supporting facts)"
        )
    traces = [t for t in read_traces(Path(audit.traces)) if any(t.labels)]
    if not traces:
        raise UserError(f"{audit.traces}: no round has a label, so there is nothing to compare")
    return traces[: audit.limit or None]


async def _judge(
    config: GleanerConfig, traces: Sequence[LabelledTrace], progress: Progress
) -> Asked:
    audit = config.audit
    async with open_judge(config) as judge:
        total = audit.repeats * len(traces)
        with progress.phase("judge labelled traces", total=total) as phase:
            return await ask_judge(
                judge,
                traces,
                repeats=audit.repeats,
                together=audit.concurrency,
                timeout_s=audit.request_timeout_s,
                on_progress=phase.reach,
            )


def _write(
    config: GleanerConfig, run_dir: Path, traces: Sequence[LabelledTrace], asked: Asked
) -> dict[str, Any]:
    """``audit.json`` and the page; returns the content of the former."""
    judged = [(t, v) for t, v in zip(traces, asked.verdicts, strict=True) if v]
    rounds = judged_rounds([t for t, _ in judged], [v for _, v in judged])
    numbers = audit_summary(
        rounds, asked.stats, seconds=asked.seconds, resamples=config.audit.bootstrap
    )
    summary = {
        "judge": judge_settings(config.judge),
        "source": config.audit.questions or config.audit.traces,
        **numbers,
        "notes": audit_notes(config, numbers, asked, len(traces)),
    }
    write_text(run_dir / "audit.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    if config.audit.page:
        write_audit_page(run_dir / "audit.html", summary, rounds)
    return summary
