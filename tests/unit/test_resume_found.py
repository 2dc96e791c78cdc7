"""A run is found again in its directory, by one process at a time, and with its own
configuration."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.errors import UserError
from pipeline.journal import FileJournal
from pipeline.ledger import Ledger
from pipeline.overrides import compose_config
from pipeline.resume import find_interrupted, locked
from pipeline.run_directory import config_yaml
from pipeline.step_record import StepRecord


def config_of(run_dir: Path, *overrides: str) -> GleanerConfig:
    return to_config(
        compose_config(["experiment=cpu_tiny", f"run_dir={run_dir}", "resume=auto", *overrides])
    )


def begun(run_dir: Path, *overrides: str) -> None:
    """A run that published its starting weights and was killed."""
    run_dir.mkdir(exist_ok=True)
    config = config_of(run_dir, *overrides)
    (run_dir / "config.yaml").write_text(config_yaml(config))
    FileJournal(run_dir / "journal").published(0, "digest")
    Ledger(
        run_dir / "ledger.sqlite",
        groups_per_step=config.buffer.groups_per_step,
        max_staleness=config.buffer.max_staleness,
    ).admit(0, "q0", 0)


def test_a_killed_run_is_found_with_what_it_published(tmp_path: Path) -> None:
    begun(tmp_path)
    found = find_interrupted(config_of(tmp_path))
    assert found is not None
    assert (found.published, found.is_done, len(found.ledger.rows)) == (0, False, 1)
    assert find_interrupted(config_of(tmp_path, "resume=never")) is None


def test_the_step_whose_record_a_death_prevented_is_found(tmp_path: Path) -> None:
    begun(tmp_path)
    steps = [StepRecord(step=n, version=n, elapsed_s=float(n)) for n in (1, 2, 3)]
    (tmp_path / "unrecorded_step.json").write_text(steps[2].to_json())
    (tmp_path / "metrics.jsonl").write_text("".join(f"{s.to_json()}\n" for s in steps[:2]))
    found = find_interrupted(config_of(tmp_path))
    assert found is not None
    assert found.unrecorded(3) == steps[2]
    assert found.unrecorded(2) is None  # the third step is computed again
    (tmp_path / "metrics.jsonl").write_text("".join(f"{s.to_json()}\n" for s in steps))
    assert found.unrecorded(3) is None  # it was recorded


def test_a_longer_run_is_the_same_run_another_learning_rate_is_not(tmp_path: Path) -> None:
    begun(tmp_path)
    assert find_interrupted(config_of(tmp_path, "trainer.steps=99", "rollout.num_actors=2"))
    with pytest.raises(UserError, match=r"learner\.lr is 0\.5 now and was 0\.00015 in the run"):
        find_interrupted(config_of(tmp_path, "learner.lr=0.5"))


def test_a_run_goes_on_with_another_endpoint_budget_or_judge(tmp_path: Path) -> None:
    """Its judge may be what ended it."""
    judge = ("judge=openai", "judge.model=m")
    begun(tmp_path, *judge, "judge.base_url=http://old/v1")
    moved = ("judge.base_url=http://new/v1", "judge.api_key_env=OTHER_KEY")
    more = ("judge.budget_tokens=9", "judge.on_canary_alarm=warn", "judge.stop_after_failures=0")
    assert find_interrupted(config_of(tmp_path, *judge, *moved, *more))
    assert find_interrupted(config_of(tmp_path, "judge=openai", "judge.model=n"))
    same = find_interrupted(config_of(tmp_path, *judge, "judge.base_url=http://old/v1"))
    assert same is not None
    assert same.judge_changes == ()
    forgotten = find_interrupted(config_of(tmp_path))
    assert forgotten is not None
    assert "judge.name was openai and is evidence" in forgotten.judge_changes


def test_with_a_schedule_that_depends_on_the_number_of_steps_it_must_stay(tmp_path: Path) -> None:
    begun(tmp_path, "learner.schedule=linear")
    with pytest.raises(UserError, match=r"trainer\.steps is 99 now and was 2"):
        find_interrupted(config_of(tmp_path, "learner.schedule=linear", "trainer.steps=99"))


def test_what_is_left_of_a_run_that_had_not_begun_is_cleared_away(tmp_path: Path) -> None:
    FileJournal(tmp_path / "journal").published(0, "digest")
    sqlite3.connect(tmp_path / "ledger.sqlite").execute("PRAGMA journal_mode = WAL").close()
    assert find_interrupted(config_of(tmp_path)) is None
    assert not (tmp_path / "journal").exists() and not (tmp_path / "ledger.sqlite").exists()


def test_before_anything_is_read_what_a_death_left_of_a_checkpoint_is_removed(
    tmp_path: Path,
) -> None:
    """It may be what fills the disk."""
    begun(tmp_path)
    partial = tmp_path / "checkpoints" / ".000002.partial"
    partial.mkdir(parents=True)
    (tmp_path / "config.yaml").unlink()  # so that it gets no further
    assert find_interrupted(config_of(tmp_path, "resume=never")) is None
    assert partial.exists()  # not ours
    with pytest.raises(UserError):
        find_interrupted(config_of(tmp_path))
    assert not partial.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_keeps_nobody_from_the_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to("/dev/full")
    with locked(tmp_path):
        pass


def test_a_second_process_is_refused_in_the_directory_and_told_of_the_first(
    tmp_path: Path,
) -> None:
    second = (
        "import sys; from pathlib import Path; from pipeline.resume import locked\n"
        "from pipeline.errors import UserError\n"
        "try:\n"
        "    with locked(Path(sys.argv[1])): print('in')\n"
        "except UserError as error: print(error)\n"
    )

    def try_it() -> str:
        command = [sys.executable, "-c", second, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with locked(tmp_path):
        assert f"another process works in {tmp_path} (process " in try_it()
    assert try_it() == "in\n"
