"""What a policy directory must hold, and the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.learning_rate import learning_rate
from actors.policy_model import policy_directory
from pipeline.config import LearnerConfig
from pipeline.errors import UserError

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def _write(directory: Path, missing: str = "") -> None:
    for name in set(FILES) - {missing}:
        (directory / name).write_text("{}")


@pytest.mark.parametrize("missing", FILES)
def test_a_directory_without_one_of_its_parts_is_refused(tmp_path: Path, missing: str) -> None:
    _write(tmp_path, missing)
    with pytest.raises(UserError, match=missing.removeprefix("model")):
        policy_directory(str(tmp_path))


def test_a_directory_with_all_parts_is_taken(tmp_path: Path) -> None:
    _write(tmp_path)
    assert policy_directory(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("path", ["/no/such/place", "./missing", "plain"])
def test_a_path_that_is_no_directory_is_not_looked_up_on_a_hub(path: str) -> None:
    with pytest.raises(UserError, match=r"no such directory; give"):
        policy_directory(path)


def test_warm_up_rises_in_equal_steps_to_the_rate() -> None:
    config = LearnerConfig(lr=0.8, warmup_steps=4)
    rates = [learning_rate(config, step, 100) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_cosine_is_at_half_after_half_of_the_steps() -> None:
    config = LearnerConfig(lr=1.0, warmup_steps=2, schedule="cosine")
    assert learning_rate(config, 2, 10) == pytest.approx(1.0)
    assert learning_rate(config, 6, 10) == pytest.approx(0.5)
    assert learning_rate(config, 10, 10) == pytest.approx(0.0)
