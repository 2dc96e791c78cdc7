"""A user's mistakes through the real command line: one message, exit code 2, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120

Cli = Callable[..., str]


@pytest.fixture
def rejected(tmp_path: Path, tiny_policy: Path) -> Cli:
    """Run the command line; it must refuse at once. Returns its one message.

    The run directory must not be left behind. The policy is the tiny one, and no index is needed
    (searches would go to a port where nothing listens), unless a test says otherwise.
    """

    def run(*arguments: str) -> str:
        run_dir = tmp_path / "run"
        defaults = {
            "experiment": "cpu_tiny",
            "policy.path": str(tiny_policy),
            "retriever": "http",
            "retriever.url": "http://127.0.0.1:9",
            "run_dir": str(run_dir),
        }
        given = {argument.partition("=")[0] for argument in arguments}
        command, rest = _split(arguments)
        if "retriever" in given:
            del defaults["retriever.url"]
        extra = [f"{key}={value}" for key, value in defaults.items() if key not in given]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command, *extra, *rest],
            cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == 2, output
        assert "Traceback" not in output
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
        assert not run_dir.exists(), sorted(run_dir.rglob("*"))
        return errors[0]

    return run


def _split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    named = arguments and "=" not in arguments[0]
    return (list(arguments[:1]), list(arguments[1:])) if named else ([], list(arguments))


@pytest.fixture
def own_files(tiny_task: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the tiny task that a test may damage, and the overrides that name it."""
    folder = Path(shutil.copytree(tiny_task, tmp_path / "task"))
    return folder, ["task=files", f"task.dir={folder}", f"task.index={folder}/index"]


def test_an_unknown_key_is_named_with_the_nearest_known_one(rejected: Cli) -> None:
    message = rejected("trainer.stepz=3")
    assert "'trainer.stepz'" in message
    assert "trainer.steps" in message


def test_a_value_of_the_wrong_type_is_named_with_its_key(rejected: Cli) -> None:
    message = rejected("trainer.steps=many")
    assert "trainer.steps" in message
    assert "many" in message


def test_a_value_out_of_range_says_the_least_one(rejected: Cli) -> None:
    assert "trainer.steps=0 is too small; it must be at least 1" in rejected("trainer.steps=0")


def test_bfloat16_without_zero_says_which_stages_have_it(rejected: Cli) -> None:
    message = rejected("learner.dtype=bfloat16")
    assert "learner.dtype=bfloat16 needs learner.zero_stage=1, 2 or 3" in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.offload_optimizer=true", "has no effect with learner.zero_stage=0"),
        ("learner.betas=[0.9]", "learner.betas=[0.9] must be AdamW's two"),
        ("learner.lr=inf", "learner.lr=inf must be finite"),
    ],
)
def test_what_a_learner_cannot_use_is_refused(rejected: Cli, override: str, says: str) -> None:
    assert says in rejected(override)


def test_sampling_that_leaves_tokens_out_is_refused_for_training(rejected: Cli) -> None:
    message = rejected("rollout.top_p=0.9")
    assert "rollout.top_p=0.9" in message and "Train with rollout.top_p=1" in message


def test_length_limits_below_one_round_say_what_would_fit(rejected: Cli) -> None:
    message = rejected("algorithm=dapo", "rollout.max_round_tokens=200")
    assert "algorithm.overlong_limit=256 less its margin of 64 is below one round" in message
    assert "algorithm.overlong_limit=800 algorithm.overlong_margin=200" in message


def test_an_unknown_choice_lists_the_choices(rejected: Cli) -> None:
    message = rejected("algorithm.credit=magic")
    assert "'magic'" in message
    assert "contribution, uniform" in message


def test_an_unknown_group_option_lists_the_options(rejected: Cli) -> None:
    message = rejected("algorithm=ppo")
    assert "ppo" in message
    assert "grpo" in message


def test_an_unknown_command_lists_the_commands(rejected: Cli) -> None:
    message = rejected("trian")
    assert "'trian'" in message
    assert "train, evaluate" in message


def test_an_override_that_cannot_be_read_is_quoted(rejected: Cli) -> None:
    assert "'protocol.user=a{b'" in rejected("protocol.user=a{b")


def test_a_missing_question_file_is_named_by_key(
    rejected: Cli, own_files: tuple[Path, list[str]]
) -> None:
    folder, overrides = own_files
    (folder / "train.jsonl").unlink()
    message = rejected(*overrides)
    assert "task.train" in message
    assert str(folder / "train.jsonl") in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "JSON"),
        ('{"id": "x", "golden_answers": ["a"]}', "question"),
        ('{"id": "x", "question": "Who?", "golden_answers": []}', "golden"),
    ],
)
def test_a_malformed_question_line_is_named_by_file_and_number(
    rejected: Cli, own_files: tuple[Path, list[str]], line: str, problem: str
) -> None:
    folder, overrides = own_files
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[2] = line
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    message = rejected(*overrides)
    assert "train.jsonl" in message
    assert "line 3" in message or "train.jsonl:3" in message
    assert problem.lower() in message.lower()


def test_a_malformed_corpus_line_is_named_by_file_and_number(
    rejected: Cli, own_files: tuple[Path, list[str]]
) -> None:
    folder, overrides = own_files
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    lines[4] = json.dumps({"id": "4", "text": "no contents"})
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    message = rejected(*overrides, "retriever=minilm")
    assert "corpus.jsonl" in message
    assert "line 5" in message or "corpus.jsonl:5" in message
    assert not (folder / "index").exists()


def test_a_missing_question_file_of_evaluate_is_named(rejected: Cli, tmp_path: Path) -> None:
    assert "nowhere.jsonl" in rejected("evaluate", f"questions={tmp_path / 'nowhere.jsonl'}")


def test_a_model_directory_without_tokenizer_says_how_to_add_one(
    rejected: Cli, tiny_policy: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_policy, tmp_path / "no-tokenizer"))
    (copy / "tokenizer.json").unlink()
    message = rejected(f"policy.path={copy}")
    assert str(copy) in message
    assert "no tokenizer" in message


def test_a_model_directory_that_does_not_exist_is_named(rejected: Cli) -> None:
    assert "policy.path=./nowhere: no such directory" in rejected("policy.path=./nowhere")


def test_too_little_memory_says_how_much_is_needed(rejected: Cli) -> None:
    assert "GiB of memory" in rejected("rollout.kv_cache_gib=1000000")


def test_too_little_shared_memory_names_it(rejected: Cli) -> None:
    message = rejected("cluster.object_store_gib=100000")
    assert "memory" in message or "/dev/shm" in message


def test_a_cluster_address_that_is_none_is_refused(
    rejected: Cli, own_files: tuple[Path, list[str]]
) -> None:
    _, overrides = own_files
    assert "cluster.address='nonsense'" in rejected(*overrides, "cluster.address=nonsense")


def test_more_actors_than_the_machine_has_cores_for_is_refused_before_anything_starts(
    rejected: Cli, own_files: tuple[Path, list[str]]
) -> None:
    _, overrides = own_files
    small = [f"{part}.num_actors=400" for part in ("rollout", "learner")]
    message = rejected(*overrides, *small, "rollout.kv_cache_gib=0", "cluster.num_cpus=2")
    assert "GiB of memory" in message or "CPU" in message
