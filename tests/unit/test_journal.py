"""The journal: what was consumed comes back bit for bit, and damage is named."""

from __future__ import annotations

import errno
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import GleanerError, UserError
from pipeline.journal import FileJournal, JournalEntry, read_journal
from pipeline.types import Sample
from tests.support.learner_cases import credit


def entry(step: int = 1, minibatch: int = 0, *, optional: bool = False) -> JournalEntry:
    """Real samples; 0.1 + 0.2 has no short decimal form."""
    batch = credit()
    samples = list(batch.samples)
    if optional:
        samples = [
            replace(s, ref_logprobs=-s.loss_weights, proximal_logprobs=s.loss_weights / 3)
            for s in samples
        ]
    return JournalEntry(
        step=step,
        minibatch=minibatch,
        num_minibatches=2,
        version=step - 1,
        normaliser=0.1 + 0.2,
        samples=samples,
    )


def same(a: Sample, b: Sample) -> bool:
    for field in fields(Sample):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            if x.dtype != y.dtype or x.tobytes() != y.tobytes():
                return False
        elif x != y:
            return False
    return True


@pytest.mark.parametrize("optional", [False, True])
def test_what_was_recorded_comes_back_bit_for_bit(tmp_path: Path, optional: bool) -> None:
    journal = FileJournal(tmp_path / "journal")
    journal.published(0, "start")
    journal.record(entry(1, 0, optional=optional))
    journal.record(entry(1, 1, optional=optional))
    journal.published(1, "first")
    view = read_journal(tmp_path / "journal")
    assert (view.last_step, view.digests) == (1, {0: "start", 1: "first"})
    first, second = view.entries(1)
    assert (first.minibatch, second.minibatch) == (0, 1)
    assert (first.step, first.version, first.normaliser) == (1, 0, 0.1 + 0.2)
    expected = entry(1, 0, optional=optional).samples
    assert len(first.samples) == len(expected)
    assert all(same(a, b) for a, b in zip(first.samples, expected, strict=True))


def test_a_batch_without_samples_and_many_minibatches_keep_their_order(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    for i in range(11):
        journal.record(replace(entry(2, i), samples=(), num_minibatches=11))
    journal.published(0, "")
    found = list(read_journal(tmp_path / "journal").entries(2))
    assert [e.minibatch for e in found] == list(range(11))
    assert found[0].samples == ()


def test_a_step_that_was_not_published_is_not_counted(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    journal.published(0, "start")
    journal.record(entry(1))
    with (tmp_path / "journal" / "published.jsonl").open("a") as file:
        file.write('{"version": 1, "dig')  # killed while writing
    assert read_journal(tmp_path / "journal").last_step == 0


def test_damage_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with pytest.raises(UserError, match=r"there is no journal in .*trainer\.journal=true"):
        read_journal(directory)
    journal = FileJournal(directory)
    journal.published(0, "start")
    journal.record(entry(1, 0))
    journal.record(entry(1, 1))
    view = read_journal(directory)
    with pytest.raises(UserError, match=r"000002-0\.safetensors is missing: step 2 cannot be"):
        list(view.entries(2))
    (directory / "000001-1.safetensors").write_bytes(b"not that")
    with pytest.raises(UserError, match=r"000001-1\.safetensors is damaged"):
        list(view.entries(1))
    (directory / "000001-1.safetensors").unlink()  # the last one
    with pytest.raises(UserError, match=r"000001-1\.safetensors is missing"):
        list(view.entries(1))
    journal.published(2, "gap")
    with pytest.raises(UserError, match=r"published\.jsonl is damaged: versions must go from 0 up"):
        read_journal(directory)


def test_a_directory_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    FileJournal(tmp_path / "journal")
    with pytest.raises(UserError, match=r"holds a run already \(journal is there\)"):
        FileJournal(tmp_path / "journal")


def test_a_full_disk_ends_the_run_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(tmp_path / "journal")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for write in (lambda: journal.record(entry()), lambda: journal.published(0, "")):
        with pytest.raises(GleanerError, match=r"No space left.*trainer\.journal=false"):
            write()
    assert not (tmp_path / "journal" / "000001-0.safetensors").exists()
