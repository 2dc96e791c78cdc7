"""The ledger is held against what the learner consumed: a group that was trained twice is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.journal import FileJournal, JournalEntry
from pipeline.ledger import Ledger
from pipeline.ledger_check import problems_of
from pipeline.ledger_view import GroupState, LedgerView, read_ledger
from pipeline.step_record import StepRecord
from tests.support.learner_cases import credit


def run_of(
    run_dir: Path, consumed: dict[int, list[list[int]]], *, published: int | None = None
) -> LedgerView:
    """A run whose ledger has groups 0, 1 in step 1 and 2, 3 in step 2, and whose learner consumed
    those mini-batches of groups."""
    ledger = Ledger(run_dir / "ledger.sqlite", groups_per_step=2, max_staleness=0)
    for step, tickets in ((1, (0, 1)), (2, (2, 3))):
        for ticket in tickets:
            ledger.admit(ticket, f"q{ticket}", step - 1)
            ledger.buffer(ticket, b"")
        ledger.train(tickets, step)
        ledger.move(tickets, GroupState.TRAINED)
    ledger.end()
    journal = FileJournal(run_dir / "journal")
    for step, minibatches in consumed.items():
        for i, groups in enumerate(minibatches):
            journal.record(
                JournalEntry(
                    step=step,
                    minibatch=i,
                    num_minibatches=len(minibatches),
                    version=step - 1,
                    normaliser=1.0,
                    samples=(),
                    groups=groups,
                )
            )
    for version in range(1 + (len(consumed) if published is None else published)):
        journal.published(version, "")
    lines = [StepRecord(step=s, version=s, elapsed_s=1.0).to_json() + "\n" for s in (1, 2)]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    return read_ledger(run_dir / "ledger.sqlite")


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_run_that_trained_each_group_once_adds_up(tmp_path: Path, minibatches: int) -> None:
    one = {1: [[0, 1]], 2: [[2, 3]]}
    view = run_of(tmp_path, one if minibatches == 1 else {1: [[1], [0]], 2: [[2], [3]]})
    assert problems_of(view, tmp_path) == []


@pytest.mark.parametrize(
    ("consumed", "problems"),
    [
        (
            {1: [[0, 1]], 2: [[1, 2]]},
            [
                "group 1 was trained in step 1 and in step 2",
                "step 2 trained groups [1, 2] by the journal, and [2, 3] by the ledger",
            ],
        ),
        (
            {1: [[0, 1]], 2: [[2, 3], [3]]},  # what the ledger's states can never show
            ["group 3 was trained in step 2 and in step 2"],
        ),
        (
            {1: [[0]], 2: [[2, 3]]},
            ["step 1 trained groups [0] by the journal, and [0, 1] by the ledger"],
        ),
    ],
)
def test_a_group_that_was_trained_twice_or_never_is_told(
    tmp_path: Path, consumed: dict[int, list[list[int]]], problems: list[str]
) -> None:
    assert problems_of(run_of(tmp_path, consumed), tmp_path) == problems


def test_steps_that_only_one_of_them_has_are_told(tmp_path: Path) -> None:
    view = run_of(tmp_path, {1: [[0, 1]]})
    first, second = problems_of(view, tmp_path)
    assert first == "the journal published 1 steps, the ledger has 2"
    assert "000002-0.safetensors is missing" in second


def test_a_sample_of_another_group_counts_as_that_group(tmp_path: Path) -> None:
    """Also in a journal that names no groups, as those of earlier versions."""
    view = run_of(tmp_path, {1: [[0, 1]], 2: [[2, 3]]})
    samples = credit().samples
    ids = sorted({s.group_id for s in samples})
    FileJournal(tmp_path / "journal", resumed=True).record(
        JournalEntry(
            step=2, minibatch=0, num_minibatches=1, version=1, normaliser=1.0, samples=samples
        )
    )
    assert f"step 2 trained groups {ids} by the journal, and [2, 3] by the ledger" in problems_of(
        view, tmp_path
    )


def test_a_run_without_a_journal_is_held_against_its_metrics_alone(tmp_path: Path) -> None:
    view = run_of(tmp_path, {1: [[0, 1]], 2: [[2, 3]]})
    (tmp_path / "journal").rename(tmp_path / "away")
    assert problems_of(view, tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text("")
    (problem,) = problems_of(view, tmp_path)
    assert problem.startswith("metrics.jsonl has 0 steps, the ledger 2: another run wrote there")
