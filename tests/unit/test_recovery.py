"""Checkpoints are whole or absent, and a lost learner comes back to the very optimizer step."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import learner as learner_module
from actors.learner import LearnerGroup
from actors.weight_sync import ObjectStoreTransport
from pipeline.checkpoint import CheckpointStore
from pipeline.config import CheckpointConfig, LearnerConfig
from pipeline.errors import ActorLostError, InfrastructureError
from pipeline.journal import FileJournal, JournalEntry, read_journal
from pipeline.recovery import RecoveringLearner, ReplayError, restore
from pipeline.types import Sample


def sample(number: int) -> Sample:
    ones = np.array([0, 1], np.float32)
    return Sample(
        token_ids=np.array([0, number], np.int32),
        loss_mask=np.array([False, True]),
        round_ids=np.array([-1, 0], np.int16),
        sampler_logprobs=-ones,
        advantages=ones,
        loss_weights=ones,
        versions=np.array([-1, 0], np.int32),
    )


class Group:
    """A learner group whose weights are the history of what it trained. Dies when told to."""

    def __init__(self) -> None:
        self.history: list[int] = []
        self.dies_at: set[str] = set()
        self.stopped = False

    def _live(self, what: str) -> None:
        if self.stopped or what in self.dies_at:
            self.stopped = True
            raise ActorLostError(f"learner-0 was lost during {what!r}")

    async def train_step(
        self, samples: list[Sample], normaliser: float, version: int = 0
    ) -> dict[str, float]:
        self._live("train_step")
        self.history += [int(s.token_ids[1]) for s in samples]
        return {"loss": float(version)}

    async def digest(self) -> str:
        self._live("digest")
        return hashlib.sha256(str(self.history).encode()).hexdigest()

    async def weights(self, *, timeout_s: float) -> tuple[Any, str]:
        self._live("weights")
        return "a reference", await self.digest()

    async def save_checkpoint(self, directory: Path) -> None:
        self._live("save_checkpoint")
        (directory / "state").write_text(json.dumps(self.history))

    async def load_checkpoint(self, directory: Path) -> None:
        self.history = json.loads((directory / "state").read_text())

    async def kill(self) -> None:
        self.stopped = True


def store(tmp_path: Path, **config: Any) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", CheckpointConfig(**config))


async def trained(tmp_path: Path, steps: int, checkpoints_at: tuple[int, ...]) -> list[str]:
    """A run of ``steps`` train steps of two optimizer steps; the digest of each version."""
    group, journal = Group(), FileJournal(tmp_path / "journal")
    checkpoints = store(tmp_path)
    digests = [await group.digest()]
    journal.published(0, digests[0])
    for step in range(1, steps + 1):
        for part in (0, 1):
            entry = entry_of(step, part)
            journal.record(entry)
            await group.train_step(list(entry.samples), 1.0, entry.version)
        digests.append(await group.digest())
        journal.published(step, digests[-1])
        if step in checkpoints_at:
            await checkpoints.save(group, step)  # type: ignore[arg-type]
    return digests


def entry_of(step: int, part: int) -> JournalEntry:
    return JournalEntry(
        step=step,
        minibatch=part,
        num_minibatches=2,
        version=step - 1,
        normaliser=1.0,
        samples=[sample(10 * step + part)],
    )


async def restored(tmp_path: Path, version: int, *, with_journal: bool = True) -> tuple[int, Group]:
    group = Group()
    journal = read_journal(tmp_path / "journal") if with_journal else None
    at = await restore(
        group,
        version=version,
        checkpoints=store(tmp_path),
        journal=journal,  # type: ignore[arg-type]
    )
    return at, group


async def test_a_learner_is_restored_by_checkpoint_and_journal_to_the_published_weights(tmp_path):
    digests = await trained(tmp_path, 5, checkpoints_at=(2, 3))
    at, group = await restored(tmp_path, 5)
    assert (at, await group.digest()) == (5, digests[5])
    at, group = await restored(tmp_path, 2)  # no later checkpoint is taken for it
    assert (at, await group.digest()) == (2, digests[2])


async def test_without_a_journal_the_newest_checkpoint_is_where_it_goes_on(tmp_path):
    digests = await trained(tmp_path, 5, checkpoints_at=(2, 3))
    at, group = await restored(tmp_path, 5, with_journal=False)
    assert (at, await group.digest()) == (3, digests[3])


async def test_a_journal_that_leads_elsewhere_is_refused(tmp_path):
    await trained(tmp_path, 3, checkpoints_at=(2,))
    FileJournal(tmp_path / "other").record(entry_of(7, 0))
    (tmp_path / "other" / "000007-0.safetensors").replace(
        tmp_path / "journal" / "000003-0.safetensors"
    )
    with pytest.raises(ReplayError, match="the steps after 2 lead to other weights"):
        await restored(tmp_path, 3)


async def test_a_checkpoint_that_was_changed_is_passed_over_for_an_older_one(tmp_path):
    digests = await trained(tmp_path, 3, checkpoints_at=(1, 2))
    (tmp_path / "checkpoints" / "000002" / "learner" / "state").write_text("[1]")
    at, group = await restored(tmp_path, 3)
    assert (at, await group.digest()) == (3, digests[3])
    at, group = await restored(tmp_path, 3, with_journal=False)
    assert (at, await group.digest()) == (1, digests[1])
    (tmp_path / "checkpoints" / "000001" / "learner" / "state").write_text("[1]")
    with pytest.raises(ReplayError, match=r"000002 does not hold .*; .*000001 does not hold"):
        await restored(tmp_path, 3)


async def test_a_journal_with_a_hole_is_told_as_one_that_leads_nowhere(tmp_path):
    await trained(tmp_path, 3, checkpoints_at=(1,))
    (tmp_path / "journal" / "000002-1.safetensors").unlink()
    with pytest.raises(ReplayError, match=r"000002-1\.safetensors is missing"):
        await restored(tmp_path, 3)


async def test_the_last_ones_and_the_best_are_kept(tmp_path):
    checkpoints, group = store(tmp_path, keep_last=2), Group()
    for step, score in ((1, 0.5), (2, 0.7), (3, None), (4, 0.6), (5, None)):
        await checkpoints.save(group, step, score)  # type: ignore[arg-type]
    assert [c.step for c in checkpoints.all()] == [2, 4, 5]
    best, newest = checkpoints.best(), checkpoints.newest(at_most=4)
    assert best is not None and newest is not None
    assert (best.step, newest.step) == (2, 4)
    checkpoints.discard_after(2)
    assert [c.step for c in checkpoints.all()] == [2]


async def test_one_is_due_at_its_turn_and_when_an_evaluation_is_the_best_so_far(tmp_path):
    checkpoints = store(tmp_path, every=4)
    assert [s for s in range(1, 9) if checkpoints.is_due(s)] == [4, 8]
    assert checkpoints.is_best(0.5)  # the first score
    await checkpoints.save(Group(), 3, 0.5)  # type: ignore[arg-type]
    assert [checkpoints.is_best(score) for score in (0.5, 0.6)] == [False, True]


async def test_on_a_full_disk_nothing_is_left_and_the_run_goes_on(tmp_path, monkeypatch):
    checkpoints, group = store(tmp_path), Group()
    await checkpoints.save(group, 1)  # type: ignore[arg-type]

    def full(place: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.checkpoint.fail_as_full_disk", full)
    assert not await checkpoints.save(group, 2)  # type: ignore[arg-type]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000001"]
    assert checkpoints.failures == 1


async def test_what_a_kill_left_half_written_is_no_checkpoint(tmp_path):
    await store(tmp_path).save(Group(), 1)  # type: ignore[arg-type]
    (tmp_path / "checkpoints" / ".000002.partial" / "learner").mkdir(parents=True)
    (tmp_path / "checkpoints" / "000003" / "learner").mkdir(parents=True)  # half removed
    assert [c.step for c in store(tmp_path).all()] == [1]
    await store(tmp_path).save(Group(), 4)  # type: ignore[arg-type]
    assert not list((tmp_path / "checkpoints").glob(".*"))  # what was left is swept away


async def test_a_checkpoint_that_says_nothing_of_itself_is_passed_over_and_stops_no_save(
    tmp_path, caplog
):
    digests = await trained(tmp_path, 3, checkpoints_at=(1, 2))
    about = tmp_path / "checkpoints" / "000002" / "checkpoint.json"
    about.write_text("{")
    at, group = await restored(tmp_path, 3, with_journal=False)
    assert (at, await group.digest()) == (1, digests[1])
    checkpoints = store(tmp_path)
    assert await checkpoints.save(group, 4)  # type: ignore[arg-type]
    assert [c.step for c in checkpoints.all()] == [1, 4]
    assert f"{about} is damaged (JSONDecodeError" in caplog.text
    about.write_text('{"format": 9}')
    for step in (1, 4):
        (tmp_path / "checkpoints" / f"{step:06d}" / "checkpoint.json").unlink()
    with pytest.raises(ReplayError, match=r"000002.* has format 9, .* reads 1: remove these"):
        await restored(tmp_path, 3, with_journal=False)  # not the whole run once more


def recovering(
    tmp_path: Path, group: Group, fresh: Callable[[], Group], restarts: int = 3
) -> RecoveringLearner:
    async def start() -> Group:
        return fresh()

    learner = RecoveringLearner(group, start, max_restarts=restarts)
    learner.recover_from(store(tmp_path), lambda: read_journal(tmp_path / "journal"), 0)
    return learner


@pytest.mark.parametrize("dies_before", range(6))
async def test_a_learner_lost_at_any_optimizer_step_ends_at_the_same_weights(tmp_path, dies_before):
    """Three train steps of two optimizer steps; the learner dies before one of them."""
    (tmp_path / "undisturbed").mkdir()
    digests = await trained(tmp_path / "undisturbed", 3, checkpoints_at=())
    journal, doomed = FileJournal(tmp_path / "journal"), Group()
    learner = recovering(tmp_path, doomed, Group)
    journal.published(0, await learner.digest())
    found = []
    for step in (1, 2, 3):
        for part in (0, 1):
            if 2 * (step - 1) + part == dies_before:
                doomed.dies_at = {"train_step"}
            entry = entry_of(step, part)
            journal.record(entry)
            metrics = await learner.train_step(entry.samples, 1.0, entry.version)
            assert metrics == {"loss": float(step - 1)}
        found.append(await learner.digest())
        journal.published(step, found[-1])
    assert (found, learner.restarts) == (digests[1:], 1)


async def test_a_learner_lost_while_its_weights_are_asked_for_has_them_again(tmp_path):
    journal, doomed = FileJournal(tmp_path / "journal"), Group()
    learner = recovering(tmp_path, doomed, Group)
    journal.published(0, await learner.digest())
    for part in (0, 1):
        entry = entry_of(1, part)
        journal.record(entry)
        await learner.train_step(entry.samples, 1.0, 0)
    expected = await learner.digest()
    doomed.dies_at = {"digest"}
    assert await learner.digest() == expected


async def test_a_learner_lost_in_a_publish_may_take_longer_to_come_back_than_a_publish(tmp_path):
    FileJournal(tmp_path / "journal").published(0, await Group().digest())
    doomed = Group()

    async def start() -> Group:
        await asyncio.sleep(0.05)
        return Group()

    learner = RecoveringLearner(doomed, start, max_restarts=1)
    learner.recover_from(store(tmp_path), lambda: read_journal(tmp_path / "journal"), 0)
    doomed.dies_at = {"weights"}

    class Engines:
        async def broadcast(self, *args: Any, **options: Any) -> dict[str, Any]:
            return {}

    transport = ObjectStoreTransport(learner, Engines(), timeout_s=0.01)  # type: ignore[arg-type]
    sent = await transport.send(1, [])
    assert (sent.digest, learner.restarts) == (await Group().digest(), 1)


async def test_the_deadline_of_a_publish_is_that_of_the_ranks_calls(monkeypatch):
    deadlines = {}

    async def call(name: str, *args: Any, timeout_s: float) -> Any:
        method = next(arg for arg in args if isinstance(arg, str))
        deadlines[method] = timeout_s
        return method

    class Host:
        """A rank as Ray shows it."""

        @property
        def call(self) -> Any:
            return self

        def options(self, num_returns: int) -> Any:
            return self

        def remote(self, method: str) -> tuple[str, str]:
            return "tensors", "digest"

    monkeypatch.setattr(learner_module, "call_actor", call)
    monkeypatch.setattr(learner_module, "await_call", call)
    group = LearnerGroup(LearnerConfig(), {"learner-0": Host()})
    await group.weights(timeout_s=3)
    await group.probe_logprobs(np.arange(4), timeout_s=4)
    await group.digest()
    assert list(deadlines.values()) == [3, 4, LearnerConfig().step_timeout_s]


async def test_a_learner_lost_over_its_checkpoint_comes_back_and_there_is_no_checkpoint(tmp_path):
    journal, doomed = FileJournal(tmp_path / "journal"), Group()
    learner = recovering(tmp_path, doomed, Group)
    journal.published(0, await learner.digest())
    entry = entry_of(1, 0)
    journal.record(entry)
    await learner.train_step(entry.samples, 1.0, 0)
    expected = await learner.digest()
    doomed.dies_at = {"save_checkpoint"}
    checkpoints = store(tmp_path)
    assert not await checkpoints.save(learner, 1)
    assert (checkpoints.all(), learner.restarts) == ([], 1)
    assert await learner.digest() == expected


async def test_a_learner_that_is_lost_while_it_is_restored_is_tried_again(tmp_path):
    journal, made = FileJournal(tmp_path / "journal"), []

    def fresh() -> Group:
        made.append(Group())
        made[-1].dies_at = {"digest"} if len(made) == 1 else set()
        return made[-1]

    doomed = Group()
    learner = recovering(tmp_path, doomed, fresh)
    journal.published(0, await learner.digest())
    doomed.dies_at = {"train_step"}
    assert await learner.train_step([sample(1)], 1.0, 0) == {"loss": 0.0}
    assert [group.stopped for group in made] == [True, False]  # nothing of the first is left


async def test_a_learner_that_is_lost_again_and_again_ends_the_run(tmp_path):
    def doomed() -> Group:
        group = Group()
        group.dies_at = {"train_step"}
        return group

    learner = recovering(tmp_path, doomed(), doomed, restarts=2)
    FileJournal(tmp_path / "journal").published(0, await Group().digest())
    with pytest.raises(InfrastructureError, match="no restart is left"):
        await learner.train_step([sample(1)], 1.0, 0)


async def test_without_a_journal_a_loss_passes_through():
    group = Group()
    group.dies_at = {"digest"}

    async def start() -> Group:
        raise AssertionError("nothing may be started")

    with pytest.raises(ActorLostError):
        await RecoveringLearner(group, start, max_restarts=3).digest()
