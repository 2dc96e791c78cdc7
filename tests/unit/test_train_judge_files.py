"""Traces that the small judge is taught with: reused where they are those that were asked for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.train_judge import (
    _collect,
    _held_out,
    judge_training_config,
    traces_file,
)
from pipeline.config import GleanerConfig
from pipeline.errors import UserError
from pipeline.judging.traces import write_traces
from pipeline.judging.training_config import JudgeTrainingConfig
from tests.support.judged import trace

World = tuple[GleanerConfig, JudgeTrainingConfig, str]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A configuration, settings, and a policy."""
    config = GleanerConfig()
    for split in ("train", "dev"):
        setattr(config.task, split, str(tmp_path / f"{split}.jsonl"))
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": split}))
    policy = tmp_path / "one" / "policy"
    policy.mkdir(parents=True)
    (policy / "config.json").write_text("{}")
    (policy / "model.safetensors").write_bytes(b"weights")
    settings = JudgeTrainingConfig(work=str(tmp_path / "work"), policies=[str(policy)])
    return config, settings, str(policy)


def test_an_equal_request_uses_the_traces_again(world: World) -> None:
    config, settings, policy = world
    path = traces_file(config, settings, policy, "train")
    write_traces(path, [trace("q", [(1, 1)])])
    assert _collect(config, settings, policy, "train") == path


def _samples(world: World) -> None:
    world[1].samples = 3


def _limit(world: World) -> None:
    world[1].limit = 5


def _seed(world: World) -> None:
    world[0].trainer.seed += 1


def _temperature(world: World) -> None:
    world[0].rollout.temperature = 0.3


def _questions(world: World) -> None:
    Path(world[0].task.train).write_text(json.dumps({"question": "another"}))


def _weights(world: World) -> None:
    path = Path(world[2]) / "model.safetensors"
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [_samples, _limit, _seed, _temperature, _questions, _weights],
    ids=lambda c: c.__name__,
)
def test_another_request_has_another_file(world: World, change: Callable[[World], None]) -> None:
    config, settings, policy = world
    before = traces_file(config, settings, policy, "train")
    change(world)
    assert traces_file(config, settings, policy, "train") != before


def test_policies_of_one_name_have_files_of_their_own(world: World, tmp_path: Path) -> None:
    config, settings, policy = world
    other = tmp_path / "two" / "policy"
    other.parent.mkdir()
    shutil.copytree(policy, other)
    first, second = (traces_file(config, settings, p, "train") for p in (policy, str(other)))
    assert first != second
    assert first.parent == second.parent


def test_held_out_traces_are_one_a_question_whatever_their_ids(world: World) -> None:
    config, settings, policy = world
    path = traces_file(config, settings, policy, "dev")
    made = [trace(f"nq/{n // 2}", [(1, 1)], number=n % 2) for n in range(6)]
    write_traces(path, made)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for n, row in enumerate(rows):  # as others write them: one stem, no question_id
        row["id"] = f"nq/{n}"
        del row["question_id"]
    path.write_text("\n".join(map(json.dumps, rows)))
    held = _held_out(config, settings, "dev", 10)
    assert [t.id for t in held] == ["nq/0", "nq/2", "nq/4"]


def test_no_policy_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"judge_training\.policies is empty"):
        judge_training_config({"policies": []})
