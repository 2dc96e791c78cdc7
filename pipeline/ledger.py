"""The ledger: where every admitted group is, on disk, and whether the counts add up.

    admitted = trained + filtered + failed + stopped + in flight          always

One row a group in an SQLite file (write-ahead log), moved by the buffer as the group moves:

    admit ──► rolling ──► buffered ──► training ──► trained (in step k, once its weights are out)
                 │
                 ├──► filtered   no variance in its rewards
                 ├──► failed     lost to infrastructure, with the reason
                 └──► stopped    under way, or finished and not used, when the run ended

A process that is killed loses no row (the machine's loss of power may take the last ones). While a
run goes on, its ledger can be read on the driver's machine only, for SQLite's write-ahead log
shares memory; afterwards it is one plain file.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.errors import UserError

__all__ = [
    "FILE_NAME",
    "GroupState",
    "Ledger",
    "LedgerRow",
    "LedgerView",
    "check_unused",
    "read_ledger",
]

FILE_NAME = "ledger.sqlite"
_SCHEMA = 1


class GroupState(StrEnum):
    """Where a group is."""

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
        return self in _FOLLOWING


_FOLLOWING = {
    GroupState.ROLLING: {
        GroupState.BUFFERED,
        GroupState.FILTERED,
        GroupState.FAILED,
        GroupState.STOPPED,
    },
    GroupState.BUFFERED: {GroupState.TRAINING, GroupState.STOPPED},
    GroupState.TRAINING: {GroupState.TRAINED, GroupState.STOPPED},
}
_TABLES = """
CREATE TABLE IF NOT EXISTS run (
    schema INTEGER NOT NULL, groups_per_step INTEGER NOT NULL, max_staleness INTEGER NOT NULL,
    outcome TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS groups (
    ticket INTEGER PRIMARY KEY, question_id TEXT NOT NULL, admission_version INTEGER NOT NULL,
    state TEXT NOT NULL, step INTEGER, reason TEXT NOT NULL DEFAULT '',
    admitted_at REAL NOT NULL, buffered_at REAL, ended_at REAL
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One group. ``step`` is that of the train step which took it; times are Unix seconds."""

    ticket: int
    question_id: str
    admission_version: int
    state: GroupState
    step: int | None
    reason: str
    admitted_at: float
    buffered_at: float | None
    ended_at: float | None


class Ledger:
    """The writing end, one a run. ``path`` of None keeps it in memory.

    Raises UserError for a file that is already there (two runs do not share one) and for a
    directory that cannot be written.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        groups_per_step: int,
        max_staleness: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if path is not None:
            check_unused(path)
        self._clock = clock
        try:
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None)
        except sqlite3.OperationalError as error:
            raise UserError(f"the ledger {path} cannot be made: {error}") from None
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing
        with self._transaction():
            for statement in _TABLES.strip().split(";\n"):
                self._database.execute(statement)
            self._database.execute(
                "INSERT INTO run VALUES (?, ?, ?, '')", (_SCHEMA, groups_per_step, max_staleness)
            )

    def admit(self, ticket: int, question_id: str, admission_version: int) -> None:
        """A group takes its slot. Raises ValueError for a ticket that is there."""
        try:
            self._database.execute(
                "INSERT INTO groups (ticket, question_id, admission_version, state, admitted_at) "
                "VALUES (?, ?, ?, ?, ?)",
                (ticket, question_id, admission_version, GroupState.ROLLING, self._clock()),
            )
        except sqlite3.IntegrityError:
            raise ValueError(f"group {ticket} was admitted twice") from None

    def move(
        self,
        tickets: Sequence[int],
        state: GroupState,
        *,
        step: int | None = None,
        reason: str = "",
    ) -> None:
        """All of ``tickets`` or none. Raises ValueError for a group that is not there or cannot
        come to ``state`` from where it is: nothing is trained twice."""
        now = self._clock()
        buffered_at = now if state is GroupState.BUFFERED else None
        ended_at = None if state.in_flight else now
        with self._transaction():
            for ticket in tickets:
                was = self._state(ticket)
                if state not in _FOLLOWING.get(was, ()):
                    raise ValueError(f"group {ticket} is {was} and cannot become {state}")
                self._database.execute(
                    "UPDATE groups SET state = ?, step = coalesce(?, step), reason = ?, "
                    "buffered_at = coalesce(?, buffered_at), ended_at = ? WHERE ticket = ?",
                    (state, step, reason, buffered_at, ended_at, ticket),
                )

    def view(self) -> LedgerView:
        """What is in it now."""
        return _view(self._database)

    def end(self, *, failed: bool = False) -> None:
        """The run is over, and the file is closed. In order: what is still in flight is stopped. By
        a failure: it stays where it is."""
        with self._transaction():
            if not failed:  # only groups that are not at their end lack its time
                self._database.execute(
                    "UPDATE groups SET state = ?, ended_at = ? WHERE ended_at IS NULL",
                    (GroupState.STOPPED, self._clock()),
                )
            self._database.execute("UPDATE run SET outcome = ?", ("failed" if failed else "ended",))
        with suppress(sqlite3.OperationalError):  # somebody reads it at this moment
            self._database.execute("PRAGMA journal_mode = DELETE")  # one plain file is left
        self._database.close()

    def _state(self, ticket: int) -> GroupState:
        row = self._database.execute(
            "SELECT state FROM groups WHERE ticket = ?", (ticket,)
        ).fetchone()
        if row is None:
            raise ValueError(f"group {ticket} was never admitted")
        return GroupState(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """What is on disk, read at one moment."""

    groups_per_step: int
    max_staleness: int
    outcome: str  # ended | failed | empty: the run goes on, or was killed
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


def read_ledger(path: Path) -> LedgerView:
    """The ledger at ``path``, also of a run that goes on or was killed; nothing is changed.

    Raises UserError where there is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no ledger at {path}: is it the directory of a training run?")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return _view(database)
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a ledger: {error}") from None


def _view(database: sqlite3.Connection) -> LedgerView:
    """Raises ValueError for another schema, TypeError where the run's row is missing."""
    schema, groups_per_step, max_staleness, outcome = database.execute(
        "SELECT * FROM run"
    ).fetchone()
    if schema != _SCHEMA:
        raise ValueError(f"it has schema {schema}, this version reads {_SCHEMA}")
    found = database.execute("SELECT * FROM groups ORDER BY ticket")
    names = [column[0] for column in found.description]
    rows = (dict(zip(names, values, strict=True)) for values in found)
    return LedgerView(
        groups_per_step=groups_per_step,
        max_staleness=max_staleness,
        outcome=outcome,
        rows=tuple(LedgerRow(**{**row, "state": GroupState(row["state"])}) for row in rows),
    )
