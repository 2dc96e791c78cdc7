"""The ledger's reading end: where every group is, and whether the counts add up.

    admitted = trained + filtered + failed + stopped + in flight          always

``pipeline.ledger`` writes it, and explains the states.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.errors import UserError

__all__ = [
    "FOLLOWING",
    "SCHEMA",
    "GroupState",
    "LedgerRow",
    "LedgerView",
    "check_unused",
    "is_begun",
    "read_ledger",
    "view_of",
]

SCHEMA = 2


class GroupState(StrEnum):
    """Where a group is."""

    QUEUED = "queued"  # to be issued again, after the run was resumed
    ROLLING = "rolling"  # admitted; engines play it, or a judge reads it
    BUFFERED = "buffered"
    TRAINING = "training"
    TRAINED = "trained"
    FILTERED = "filtered"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def in_flight(self) -> bool:
        """Not at its end yet."""
        return self in FOLLOWING


#: What a group can become.
FOLLOWING = {
    GroupState.QUEUED: {GroupState.ROLLING, GroupState.STOPPED},
    GroupState.ROLLING: {
        GroupState.BUFFERED,
        GroupState.FILTERED,
        GroupState.FAILED,
        GroupState.STOPPED,
    },
    GroupState.BUFFERED: {GroupState.TRAINING, GroupState.STOPPED},
    GroupState.TRAINING: {GroupState.TRAINED, GroupState.STOPPED},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One group. ``step`` is that of the train step which took it; times are Unix seconds.
    ``issues`` counts how often it was given to an engine as a whole, ``rolled_back`` how often its
    training was undone by a resumption."""

    ticket: int
    question_id: str
    admission_version: int
    state: GroupState
    step: int | None
    reason: str
    admitted_at: float
    buffered_at: float | None
    ended_at: float | None
    issues: int
    rolled_back: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """What is on disk, read at one moment."""

    groups_per_step: int
    max_staleness: int
    outcome: str  # ended | failed | empty: the run goes on, or was killed
    resumes: int  # how often the run went on after a death
    rows: tuple[LedgerRow, ...]  # by ticket

    def counts(self) -> dict[GroupState, int]:
        """Groups by state; every state is there."""
        found = Counter(row.state for row in self.rows)
        return {state: found[state] for state in GroupState}

    def steps(self) -> dict[int, list[LedgerRow]]:
        """The trained groups of each train step, by step."""
        made: dict[int, list[LedgerRow]] = {}
        for row in self.rows:
            if row.state is GroupState.TRAINED and row.step is not None:
                made.setdefault(row.step, []).append(row)
        return dict(sorted(made.items()))

    def problems(self) -> list[str]:
        """What does not add up, a sentence each; empty where all is well."""
        return [*self._of_rows(), *self._of_steps()]

    def _of_rows(self) -> Iterator[str]:
        for expected, row in enumerate(self.rows):
            if row.ticket != expected:
                yield f"group {expected} is missing: {row.ticket} follows {expected - 1}"
                return
        for row in self.rows:
            if self.outcome == "ended" and row.state.in_flight:
                yield f"group {row.ticket} is {row.state}, but the run has ended"
            if row.state is GroupState.TRAINED and row.step is None:
                yield f"group {row.ticket} is trained in no step"
            if row.state is GroupState.FAILED and not row.reason:
                yield f"group {row.ticket} failed without a reason"

    def _of_steps(self) -> Iterator[str]:
        for expected, (step, rows) in enumerate(self.steps().items(), start=1):
            if step != expected:
                yield f"no group was trained in step {expected}"
                return
            if len(rows) != self.groups_per_step:
                yield f"step {step} trained {len(rows)} groups, not {self.groups_per_step}"
            for row in rows:
                staleness = step - 1 - row.admission_version
                if not 0 <= staleness <= self.max_staleness:
                    yield (
                        f"group {row.ticket} had staleness {staleness} in step {step}, the bound "
                        f"is {self.max_staleness}"
                    )


def check_unused(path: Path) -> None:
    """Raises UserError where ``path``, a run's ledger or journal, is there of an earlier run."""
    if path.exists():
        raise UserError(
            f"{path.parent} holds a run already ({path.name} is there): choose another run_dir, or "
            "remove that directory"
        )


def is_begun(path: Path) -> bool:
    """Whether there is a ledger at ``path``, and not just the file of one that was being made."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        try:
            return database.execute("SELECT count(*) FROM run").fetchone() == (1,)
        except sqlite3.OperationalError as error:
            return "no such table" not in str(error)
        except sqlite3.DatabaseError:
            return True  # whatever it is: reading it says so


def read_ledger(path: Path) -> LedgerView:
    """The ledger at ``path``, also of a run that goes on or was killed; nothing is changed.

    Raises UserError where there is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no ledger at {path}: is it the directory of a training run?")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return view_of(database)
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a ledger: {error}") from None


def view_of(database: sqlite3.Connection) -> LedgerView:
    """Raises ValueError for another schema, TypeError where the run's row is missing."""
    schema, *of_run = database.execute("SELECT * FROM run").fetchone()
    if schema != SCHEMA:
        raise ValueError(f"it has schema {schema}, this version reads {SCHEMA}")
    groups_per_step, max_staleness, outcome, resumes = of_run
    found = database.execute("SELECT * FROM groups ORDER BY ticket")
    names = [column[0] for column in found.description]
    rows = (dict(zip(names, values, strict=True)) for values in found)
    return LedgerView(
        groups_per_step=groups_per_step,
        max_staleness=max_staleness,
        outcome=outcome,
        resumes=resumes,
        rows=tuple(LedgerRow(**{**row, "state": GroupState(row["state"])}) for row in rows),
    )
