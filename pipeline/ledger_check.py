"""Whether a run's ledger agrees with what else the run wrote: its journal and its metrics.

The ledger has one state a group, so it cannot by itself show a group that was trained twice. The
journal can: it names the groups of each mini-batch that the learner consumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.journal import DIRECTORY_NAME as JOURNAL
from pipeline.journal import read_journal
from pipeline.ledger_view import LedgerView
from pipeline.step_record import read_metrics

__all__ = ["problems_of"]


def problems_of(view: LedgerView, run_dir: Path) -> list[str]:
    """What does not add up in the ledger of ``run_dir``, a sentence each; ``view`` was read before
    this is called, for a run that goes on."""
    return [
        *view.problems(),
        *_against_journal(view, run_dir / JOURNAL),
        *_against_metrics(view, run_dir / "metrics.jsonl"),
    ]


def _against_journal(view: LedgerView, directory: Path) -> Iterator[str]:
    """Each step consumed just the groups that the ledger has for it, and none a second time."""
    if not directory.is_dir():  # trainer.journal=false
        return
    try:
        journal = read_journal(directory)
    except UserError as error:
        yield str(error)
        return
    steps = view.steps()
    if view.outcome == "ended" and journal.last_step != len(steps):
        yield f"the journal published {journal.last_step} steps, the ledger has {len(steps)}"
    trained_in: dict[int, int] = {}  # step by ticket
    for step, rows in steps.items():
        try:
            consumed = journal.groups(step)
        except UserError as error:
            yield str(error)
            continue
        for ticket in consumed:
            if ticket in trained_in:
                yield f"group {ticket} was trained in step {trained_in[ticket]} and in step {step}"
            trained_in[ticket] = step
        expected = {row.ticket for row in rows}
        if set(consumed) != expected:
            yield (
                f"step {step} trained groups {sorted(set(consumed))} by the journal, and "
                f"{sorted(expected)} by the ledger"
            )


def _against_metrics(view: LedgerView, path: Path) -> Iterator[str]:
    """A run that ended in order has written a line of metrics for each step; a death may have come
    between a step and its line."""
    if view.outcome == "ended" and path.exists():
        recorded, trained = [r.step for r in read_metrics(path)], list(view.steps())
        missing = len(set(trained) - set(recorded))
        if missing > view.resumes or [s for s in trained if s in recorded] != recorded:
            yield (
                f"{path.name} has {len(recorded)} steps, the ledger {len(trained)}: another run "
                "wrote there, or a file was changed"
            )
