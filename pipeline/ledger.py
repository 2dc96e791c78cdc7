"""The ledger: where every admitted group is, on disk, and whether the counts add up.

    admitted = trained + filtered + failed + stopped + in flight          always

One row a group in an SQLite file (write-ahead log), moved by the buffer as the group moves:

    admit ──► rolling ──► buffered ──► training ──► trained (in step k, once its weights are out)
                 │
                 ├──► filtered   no variance in its rewards
                 ├──► failed     lost to infrastructure, with the reason
                 └──► stopped    under way, or finished and not used, when the run ended

A finished group is in the ledger whole, until it is trained. So a run that died is resumed from it
(`Ledger.resume`): what was buffered or training is where it was; what was rolling is *queued*, to
be issued again under its old ticket. Where the learner cannot be brought to the last published
weights, the groups trained since its checkpoint are queued as well, and counted as rolled back.

A process that is killed loses no row; a machine that loses power none that a train step rests on.
What cannot be written is not in it, not even in part: writing raises FullDiskError where there is
no room at this moment, and GleanerError for anything else that SQLite says.
While a run goes on, its ledger can be read on the driver's machine only, for SQLite's write-ahead
log shares memory; afterwards it is one plain file.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import FullDiskError, GleanerError, UserError
from pipeline.ledger_view import (
    FOLLOWING,
    SCHEMA,
    GroupState,
    LedgerView,
    check_unused,
    read_ledger,
    view_of,
)

__all__ = ["FILE_NAME", "Ledger"]

logger = logging.getLogger(__name__)

FILE_NAME = "ledger.sqlite"
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)  # the latter where its shared memory grows


_TABLES = """
CREATE TABLE IF NOT EXISTS run (
    schema INTEGER NOT NULL, groups_per_step INTEGER NOT NULL, max_staleness INTEGER NOT NULL,
    outcome TEXT NOT NULL DEFAULT '', resumes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS groups (
    ticket INTEGER PRIMARY KEY, question_id TEXT NOT NULL, admission_version INTEGER NOT NULL,
    state TEXT NOT NULL, step INTEGER, reason TEXT NOT NULL DEFAULT '',
    admitted_at REAL NOT NULL, buffered_at REAL, ended_at REAL,
    issues INTEGER NOT NULL DEFAULT 1, rolled_back INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS contents (ticket INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT;
"""


class Ledger:
    """The writing end, one a run. ``path`` of None keeps it in memory.

    Raises UserError for a file that is already there (two runs do not share one) and for a
    directory that cannot be written; with ``resumed`` for a file that is not there, or of a run
    with another slot budget.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        groups_per_step: int,
        max_staleness: int,
        resumed: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if path is not None and not resumed:
            check_unused(path)
        if path is not None and resumed:
            _check_budget(read_ledger(path), path, groups_per_step, max_staleness)
        self._path, self._clock = path, clock
        try:
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None)
        except sqlite3.OperationalError as error:
            raise UserError(f"the ledger {path} cannot be made: {error}") from None
        with self._told():
            self._database.execute("PRAGMA journal_mode = WAL")
        self._sync_commits(False)
        if not resumed:
            with self._transaction():
                for statement in _TABLES.strip().split(";\n"):
                    self._database.execute(statement)
                self._database.execute(
                    "INSERT INTO run VALUES (?, ?, ?, '', 0)",
                    (SCHEMA, groups_per_step, max_staleness),
                )

    def admit(self, ticket: int, question_id: str, admission_version: int) -> None:
        """A group takes its slot. Raises ValueError for a ticket that is there."""
        with self._transaction():
            try:
                self._database.execute(
                    "INSERT INTO groups "
                    "(ticket, question_id, admission_version, state, admitted_at) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (ticket, question_id, admission_version, GroupState.ROLLING, self._clock()),
                )
            except sqlite3.IntegrityError:
                raise ValueError(f"group {ticket} was admitted twice") from None

    def readmit(self, ticket: int, admission_version: int) -> None:
        """A queued group takes a slot again. Raises ValueError for one that is not queued."""
        with self._transaction():
            self._check(ticket, GroupState.ROLLING)
            self._database.execute(
                "UPDATE groups SET state = ?, admission_version = ?, issues = issues + 1 "
                "WHERE ticket = ?",
                (GroupState.ROLLING, admission_version, ticket),
            )

    def buffer(self, ticket: int, content: bytes) -> None:
        """A group is finished: ``content`` is kept until it is trained. Raises ValueError for one
        that was not rolling."""
        with self._transaction():
            self._check(ticket, GroupState.BUFFERED)
            self._database.execute(
                "UPDATE groups SET state = ?, buffered_at = ? WHERE ticket = ?",
                (GroupState.BUFFERED, self._clock(), ticket),
            )
            self._database.execute(
                "INSERT OR REPLACE INTO contents VALUES (?, ?)", (ticket, content)
            )

    def train(self, tickets: Sequence[int], step: int) -> None:
        """The groups of a train step. Synced: whatever was admitted before survives a loss of
        power, so that the journal and the published weights never speak of unknown groups."""
        self._sync_commits(True)
        try:
            self.move(tickets, GroupState.TRAINING, step=step)
        finally:
            self._sync_commits(False)

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
        ended_at = None if state.in_flight else self._clock()
        with self._transaction():
            for ticket in tickets:
                self._check(ticket, state)
                self._database.execute(
                    "UPDATE groups SET state = ?, step = coalesce(?, step), reason = ?, "
                    "ended_at = ? WHERE ticket = ?",
                    (state, step, reason, ended_at, ticket),
                )
            self._drop_contents()

    def resume(self, version: int) -> None:
        """Go on after a death, from weight ``version``: that which was published last, or the older
        one of a checkpoint, which undoes what was trained since."""
        run = self._database.execute
        with self._transaction():
            run("UPDATE run SET outcome = '', resumes = resumes + 1")
            undone = run(
                "UPDATE groups SET rolled_back = rolled_back + 1 WHERE state = ? AND step > ?",
                (GroupState.TRAINED, version),
            ).rowcount
            if undone:
                self._queue_all_but_ended(version)
            run(  # its publish was the last thing that the journal heard of
                "UPDATE groups SET state = ?, ended_at = ? WHERE state = ? AND step <= ?",
                (GroupState.TRAINED, self._clock(), GroupState.TRAINING, version),
            )
            run(
                "UPDATE groups SET state = ?, ended_at = NULL "
                "WHERE state = ? AND ticket IN (SELECT ticket FROM contents)",
                (GroupState.BUFFERED, GroupState.STOPPED),
            )
            run(
                "UPDATE groups SET state = ?, ended_at = NULL WHERE state IN (?, ?)",
                (GroupState.QUEUED, GroupState.ROLLING, GroupState.STOPPED),
            )
            self._drop_contents()

    def _queue_all_but_ended(self, version: int) -> None:
        """Finished groups as well: they were sampled with weights that are no more."""
        trained, filtered, failed = GroupState.TRAINED, GroupState.FILTERED, GroupState.FAILED
        self._database.execute(
            "UPDATE groups SET state = ?, step = NULL, ended_at = NULL, buffered_at = NULL "
            "WHERE state NOT IN (?, ?) AND NOT (state = ? AND step <= ?)",
            (GroupState.QUEUED, filtered, failed, trained, version),
        )

    def contents(self) -> dict[int, bytes]:
        """What `buffer` was given of every group that is finished and not trained, by ticket."""
        return dict(self._database.execute("SELECT ticket, content FROM contents ORDER BY ticket"))

    def view(self) -> LedgerView:
        """What is in it now."""
        return view_of(self._database)

    def end(self, *, failed: bool = False) -> None:
        """The run is over, and the file is closed. In order: what is still in flight is stopped. By
        a failure: it stays where it is, and the file says so if it can be written."""
        try:
            with self._transaction():
                if not failed:  # only groups that are not at their end lack its time
                    self._database.execute(
                        "UPDATE groups SET state = ?, ended_at = ? WHERE ended_at IS NULL",
                        (GroupState.STOPPED, self._clock()),
                    )
                outcome = "failed" if failed else "ended"
                self._database.execute("UPDATE run SET outcome = ?", (outcome,))
            with suppress(sqlite3.OperationalError):  # somebody reads it at this moment
                self._database.execute("PRAGMA journal_mode = DELETE")  # one plain file is left
        except GleanerError as error:
            if not failed:
                raise
            logger.warning("%s", error)  # what the run failed by says more
        finally:
            self._database.close()

    def _check(self, ticket: int, to: GroupState) -> None:
        row = self._database.execute(
            "SELECT state FROM groups WHERE ticket = ?", (ticket,)
        ).fetchone()
        if row is None:
            raise ValueError(f"group {ticket} was never admitted")
        if to not in FOLLOWING.get(row[0], ()):
            raise ValueError(f"group {ticket} is {row[0]} and cannot become {to}")

    def _drop_contents(self) -> None:
        """Of groups that need none any more (those that stopped may be resumed)."""
        self._database.execute(
            "DELETE FROM contents WHERE ticket IN (SELECT ticket FROM groups WHERE state NOT IN "
            "(?, ?, ?))",
            (GroupState.BUFFERED, GroupState.TRAINING, GroupState.STOPPED),
        )

    def _sync_commits(self, on: bool) -> None:
        """Off: a commit survives the death of the process, but not that of the machine."""
        self._database.execute(f"PRAGMA synchronous = {'FULL' if on else 'NORMAL'}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite cannot write is told as what a user can mend."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary one
            kind = FullDiskError if code in _NO_ROOM else GleanerError
            raise kind(
                f"the ledger {self._path} cannot be written ({error}): make room, and resume"
            ) from None


def _check_budget(view: LedgerView, path: Path, groups_per_step: int, max_staleness: int) -> None:
    had = (view.groups_per_step, view.max_staleness)
    if had != (groups_per_step, max_staleness):
        raise UserError(
            f"the run of {path} has buffer.groups_per_step={had[0]} and buffer.max_staleness="
            f"{had[1]}, and cannot go on with {groups_per_step} and {max_staleness}"
        )
