"""The ledger: nothing is lost by a kill, nothing is trained twice, and wrong counts are told."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.ledger import describe
from pipeline.errors import FullDiskError, GleanerError, UserError
from pipeline.ledger import Ledger
from pipeline.ledger_view import GroupState, LedgerView, check_unused, read_ledger

ROLLING, BUFFERED, TRAINING = GroupState.ROLLING, GroupState.BUFFERED, GroupState.TRAINING
TRAINED, STOPPED = GroupState.TRAINED, GroupState.STOPPED
QUEUED, FILTERED = GroupState.QUEUED, GroupState.FILTERED


def ledger_at(
    path: Path | None = None, *, groups_per_step: int = 1, max_staleness: int = 0
) -> Ledger:
    """Every look at the clock is one second later."""
    return Ledger(
        path,
        groups_per_step=groups_per_step,
        max_staleness=max_staleness,
        clock=itertools.count(100.0).__next__,
    )


def train(ledger: Ledger, ticket: int, step: int, version: int) -> None:
    ledger.admit(ticket, f"q{ticket}", version)
    ledger.buffer(ticket, b"content")
    ledger.train([ticket], step)
    ledger.move([ticket], TRAINED)


def changed(view_of: Ledger, statement: str) -> LedgerView:
    """As a bug, or a hand, would leave it."""
    view_of._database.execute(statement)
    return view_of.view()


def test_a_trained_group_knows_its_step_and_when_it_was_where() -> None:
    ledger = ledger_at()
    train(ledger, 0, 1, 0)
    (row,) = ledger.view().rows
    assert (row.question_id, row.state, row.step) == ("q0", TRAINED, 1)
    assert (row.admitted_at, row.buffered_at, row.ended_at) == (100.0, 101.0, 102.0)
    assert ledger.view().problems() == []


def test_a_group_is_trained_once_and_never_out_of_nowhere() -> None:
    ledger = ledger_at()
    train(ledger, 0, 1, 0)
    with pytest.raises(ValueError, match="group 0 is trained and cannot become training"):
        ledger.move([0], TRAINING, step=2)
    ledger.admit(1, "q", 1)
    with pytest.raises(ValueError, match="group 1 is rolling and cannot become trained"):
        ledger.move([1], TRAINED)
    with pytest.raises(ValueError, match="group 7 was never admitted"):
        ledger.move([7], BUFFERED)
    with pytest.raises(ValueError, match="group 1 was admitted twice"):
        ledger.admit(1, "q", 1)


def test_groups_move_together_or_not_at_all() -> None:
    ledger = ledger_at()
    ledger.admit(0, "q", 0)
    with pytest.raises(ValueError, match="group 1 was never admitted"):
        ledger.move([0, 1], BUFFERED)
    assert [row.state for row in ledger.view().rows] == [ROLLING]


def test_an_end_in_order_leaves_nothing_in_flight(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    train(ledger, 0, 1, 0)
    ledger.admit(1, "q1", 1)
    ledger.end()
    view = read_ledger(tmp_path / "ledger.sqlite")
    assert (view.outcome, [row.state for row in view.rows]) == ("ended", [TRAINED, STOPPED])
    assert view.problems() == []
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.sqlite"]  # no log is left beside it
    text = list(describe(view))
    assert text[0] == (
        "the run ended; 2 groups = 1 trained + 0 filtered + 0 failed + 1 stopped + 0 in flight"
    )


def test_a_failed_run_leaves_its_groups_where_they_were_in_one_plain_file(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    ledger.admit(0, "q", 0)
    ledger.end(failed=True)
    view = read_ledger(tmp_path / "ledger.sqlite")
    assert (view.outcome, [row.state for row in view.rows]) == ("failed", [ROLLING])
    assert view.problems() == []
    assert next(describe(view)).startswith("the run failed; 1 groups = 0 trained")
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.sqlite"]


def interrupted(path: Path) -> None:
    """Killed in step 2: 0 trained, 1 training, 2 buffered, 3 rolling, 4 filtered."""
    ledger = ledger_at(path, max_staleness=4)
    train(ledger, 0, 1, 0)
    for ticket in (1, 2, 3, 4):
        ledger.admit(ticket, f"q{ticket}", 0)
    ledger.buffer(1, b"one")
    ledger.buffer(2, b"two")
    ledger.move([4], GroupState.FILTERED)
    ledger.train([1], 2)


def resumed(path: Path, version: int) -> Ledger:
    ledger = Ledger(path, groups_per_step=1, max_staleness=4, resumed=True)
    ledger.resume(version)
    return ledger


def test_a_resumed_run_keeps_what_was_finished_and_queues_what_was_rolling(tmp_path: Path) -> None:
    interrupted(path := tmp_path / "ledger.sqlite")
    ledger = resumed(path, 1)
    view = ledger.view()
    assert [row.state for row in view.rows] == [TRAINED, TRAINING, BUFFERED, QUEUED, FILTERED]
    assert ledger.contents() == {1: b"one", 2: b"two"}
    assert (view.resumes, view.problems()) == (1, [])
    ledger.readmit(3, 1)
    row = ledger.view().rows[3]
    assert (row.state, row.admission_version, row.issues) == (ROLLING, 1, 2)
    with pytest.raises(ValueError, match="group 3 is rolling and cannot become rolling"):
        ledger.readmit(3, 1)


def test_a_step_that_was_published_is_trained_though_the_ledger_had_not_heard(
    tmp_path: Path,
) -> None:
    interrupted(path := tmp_path / "ledger.sqlite")
    ledger = resumed(path, 2)
    row = ledger.view().rows[1]
    assert (row.state, row.step, row.ended_at is None) == (TRAINED, 2, False)
    assert ledger.contents() == {2: b"two"}


def test_rolled_back_to_a_checkpoint_what_was_trained_since_is_issued_again_and_counted(
    tmp_path: Path,
) -> None:
    interrupted(path := tmp_path / "ledger.sqlite")
    ledger = resumed(path, 0)
    view = ledger.view()
    assert [row.state for row in view.rows] == [QUEUED, QUEUED, QUEUED, QUEUED, FILTERED]
    assert [row.rolled_back for row in view.rows] == [1, 0, 0, 0, 0]
    assert ledger.contents() == {}
    assert "issued again after a death of the run: 0 groups; rolled back: 1" in list(describe(view))


def test_what_an_end_in_order_stopped_can_be_resumed(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite", max_staleness=4)
    for ticket in (0, 1):
        ledger.admit(ticket, f"q{ticket}", 0)
    ledger.buffer(0, b"zero")
    ledger.end()
    ledger = resumed(tmp_path / "ledger.sqlite", 0)
    assert [(row.state, row.ended_at) for row in ledger.view().rows] == [
        (BUFFERED, None),
        (QUEUED, None),
    ]
    assert ledger.view().outcome == ""


def test_a_run_does_not_go_on_with_another_slot_budget(tmp_path: Path) -> None:
    interrupted(path := tmp_path / "ledger.sqlite")
    with pytest.raises(UserError, match=r"max_staleness=4, and cannot go on with 1 and 2"):
        Ledger(path, groups_per_step=1, max_staleness=2, resumed=True)


def test_a_kill_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.ledger import Ledger\n"
        "from pipeline.ledger_view import GroupState\n"
        "ledger = Ledger(Path(sys.argv[1]), groups_per_step=1, max_staleness=0)\n"
        "ledger.admit(0, 'q0', 0)\n"
        "ledger.move([0], GroupState.BUFFERED)\n"
        "ledger.admit(1, 'q1', 0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, path], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    view = read_ledger(path)
    assert [row.state for row in view.rows] == [BUFFERED, ROLLING]
    assert view.outcome == ""
    assert list(describe(view))[:2] == [
        "the run goes on, or was killed; 2 groups = 0 trained + 0 filtered + 0 failed + 0 stopped "
        "+ 2 in flight",
        "in flight: 1 rolling, 1 buffered",
    ]


def test_a_running_ledger_can_be_read_and_is_not_changed(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    ledger.admit(0, "q", 0)
    assert len(read_ledger(tmp_path / "ledger.sqlite").rows) == 1
    ledger.admit(1, "q", 0)
    assert len(read_ledger(tmp_path / "ledger.sqlite").rows) == 2


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM groups WHERE ticket = 1", "group 1 is missing: 2 follows 0"),
        ("UPDATE groups SET step = 3 WHERE step = 2", "no group was trained in step 2"),
        ("UPDATE groups SET step = NULL WHERE ticket = 3", "group 3 is trained in no step"),
        ("UPDATE groups SET step = 1 WHERE ticket = 3", "step 1 trained 3 groups, not 2"),
        (
            "UPDATE groups SET admission_version = 0 WHERE ticket = 2",
            "group 2 had staleness 1 in step 2, the bound is 0",
        ),
        (
            "UPDATE groups SET step = 3 - step",
            "group 2 had staleness -1 in step 1, the bound is 0",
        ),
        ("UPDATE groups SET state = 'failed'", "group 0 failed without a reason"),
        ("UPDATE run SET outcome = 'ended'", "group 4 is rolling, but the run has ended"),
    ],
)
def test_what_does_not_add_up_is_told(statement: str, problem: str) -> None:
    ledger = ledger_at(groups_per_step=2)
    for ticket in range(4):
        train(ledger, ticket, step=1 + ticket // 2, version=ticket // 2)
    ledger.admit(4, "q", 2)
    assert ledger.view().problems() == []
    assert problem in changed(ledger, statement).problems()


def test_a_second_run_does_not_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    check_unused(path)
    ledger_at(path)
    for again in (lambda: check_unused(path), lambda: ledger_at(path)):
        with pytest.raises(UserError, match=r"holds a run already \(ledger\.sqlite is there\)"):
            again()


def test_what_is_no_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(UserError, match=r"there is no ledger at .*ledger\.sqlite"):
        read_ledger(path)
    path.write_text("something else, long enough to be taken for a file of another format" * 9)
    with pytest.raises(UserError, match=r"ledger\.sqlite cannot be read as a ledger: file is not"):
        read_ledger(path)
    path.unlink()
    ledger = ledger_at(path)
    ledger._database.execute("UPDATE run SET schema = 9")
    with pytest.raises(UserError, match="it has schema 9, this version reads 2"):
        read_ledger(path)


def filled(path: Path) -> Ledger:
    """One group rolls, and no page of the file is left."""
    ledger = ledger_at(path)
    ledger.admit(0, "q", 0)
    (pages,) = ledger._database.execute("PRAGMA page_count").fetchone()
    ledger._database.execute(f"PRAGMA max_page_count = {pages}")
    return ledger


def test_on_a_full_disk_nothing_changes_and_the_cause_is_told_with_the_file(tmp_path: Path) -> None:
    ledger = filled(path := tmp_path / "ledger.sqlite")
    for _ in range(2):  # no transaction is left open by the first
        with pytest.raises(FullDiskError) as raised:
            ledger.buffer(0, bytes(100_000))
        assert str(raised.value) == (
            f"the ledger {path} cannot be written (database or disk is full): make room, and resume"
        )
    assert [row.state for row in ledger.view().rows] == [ROLLING]
    ledger._database.execute("PRAGMA max_page_count = 1000")
    ledger.buffer(0, bytes(100_000))
    assert [row.state for row in ledger.view().rows] == [BUFFERED]


def test_any_other_refusal_of_sqlite_is_told_as_well(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger._database.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(GleanerError, match=r"cannot be written \(database is locked\)"):
        ledger.admit(0, "q", 0)
    other.execute("ROLLBACK")
    ledger.admit(0, "q", 0)
    assert len(ledger.view().rows) == 1


def test_a_failure_is_not_hidden_by_a_ledger_that_cannot_note_it(tmp_path: Path, caplog) -> None:
    for failed in (True, False):
        ledger = ledger_at(tmp_path / f"{failed}.sqlite")
        ledger._database.execute("PRAGMA query_only = TRUE")  # nothing can be written any more
        if failed:
            ledger.end(failed=True)
            assert "attempt to write a readonly database" in caplog.text
        else:
            with pytest.raises(GleanerError, match="attempt to write a readonly database"):
                ledger.end()


def test_a_directory_that_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the ledger .*ledger\.sqlite cannot be made: unable"):
        ledger_at(tmp_path / "nowhere" / "ledger.sqlite")
    assert os.listdir(tmp_path) == []
