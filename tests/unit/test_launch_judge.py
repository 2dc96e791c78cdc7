"""One judge in this process: what is checked before, and what may go wrong while it is made."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands import attack, audit
from pipeline.config import GleanerConfig
from pipeline.errors import LateError, UserError
from pipeline.judging.traces import write_traces
from pipeline.launch import check_open_judge, open_judge
from tests.support.traces import traces


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """A judge that is opened sets variables of this process: they are put back."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def config_of(**judge: object) -> GleanerConfig:
    config = GleanerConfig()
    for key, value in judge.items():
        setattr(config.judge, key, value)
    return config


def broken_model(directory: Path, tokenizer: str) -> Path:
    """A directory that has every file of a model, and is none."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    (directory / "tokenizer.json").write_text(tokenizer)
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


@pytest.mark.parametrize("command", [audit, attack])
def test_a_judge_that_is_not_there_is_said_before_anything_is_made(
    command: object, tmp_path: Path
) -> None:
    write_traces(tmp_path / "t.jsonl", traces())
    config = config_of(name="vllm", model=str(tmp_path / "nowhere"))
    config.audit.traces = str(tmp_path / "t.jsonl")
    config.run_dir = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"judge\.model=.*nowhere: no such directory"):
        command.run(config)  # type: ignore[attr-defined]
    assert not (tmp_path / "run").exists()


def test_members_are_checked_and_canaries_are_not_asked_for(tmp_path: Path) -> None:
    member = {"name": "vllm", "model": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match="nowhere: no such directory"):
        check_open_judge(config_of(name="ensemble", members=[{"name": "evidence"}, member]))
    check_open_judge(config_of(name="evidence", canaries=str(tmp_path / "nowhere.jsonl")))


@pytest.mark.parametrize("tokenizer", ["no JSON", "{}"])
async def test_a_model_that_cannot_be_loaded_is_a_users_error(
    tmp_path: Path, tokenizer: str
) -> None:
    model = broken_model(tmp_path / "broken", tokenizer)
    with pytest.raises(UserError, match=rf"judge\.model={model} cannot be loaded: \w+: "):
        async with open_judge(config_of(name="vllm", model=str(model))):
            raise AssertionError("it was opened")


async def test_the_time_to_start_includes_the_making_of_the_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on the cache's file holds up its opening, which is a part of making a judge."""
    import sqlite3

    from pipeline.judging.cache import VerdictCache

    path = tmp_path / "cache.sqlite"
    VerdictCache(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("pragma locking_mode = exclusive")
    holder.execute("begin exclusive")
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    config = config_of(
        name="openai",
        model="m",
        base_url="http://127.0.0.1:9/v1",
        cache=str(path),
        start_timeout_s=0.5,
    )
    began = time.monotonic()
    with pytest.raises(LateError, match=r"judge\.start_timeout_s"):
        async with open_judge(config):
            raise AssertionError("it was opened")
    assert time.monotonic() - began < 10
    holder.close()


async def test_a_judge_is_made_used_and_closed() -> None:
    async with open_judge(config_of(name="evidence")) as judge:
        judged = await judge.judge([t.trajectory for t in traces()])
    assert judged == [t.labels for t in traces()]
