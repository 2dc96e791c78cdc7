"""The profile: a usable GPU with enough memory, else the CPU, always with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.profile import GPU_EXPERIMENT, GPU_MEMORY_GIB, Gpu, decide, parse_nvidia_smi

ROOT = Path(__file__).resolve().parents[2]
BIG = Gpu("NVIDIA A100", 80.0, 79.0)


def test_no_gpu_means_cpu_and_says_that_none_answers() -> None:
    profile = decide([], None)
    assert (profile.name, profile.experiment) == ("cpu", "cpu_default")
    assert "no NVIDIA GPU" in profile.reason


def test_a_gpu_with_room_means_the_gpu_profile_and_names_the_gpu() -> None:
    profile = decide([BIG], None)
    assert (profile.name, profile.experiment) == ("gpu", GPU_EXPERIMENT)
    assert profile.reason == "NVIDIA A100 with 79 of 80 GiB free; 22 GiB needed"


def test_the_gpu_with_most_free_memory_decides() -> None:
    busy = Gpu("NVIDIA A100", 80.0, 3.0)
    assert decide([busy, BIG], None).name == "gpu"


def test_a_gpu_without_enough_free_memory_means_cpu_and_says_how_much_is_needed() -> None:
    profile = decide([Gpu("NVIDIA T4", 15.0, 14.5)], None)
    assert profile.name == "cpu"
    assert "14.5 of 15 GiB free, but gpu_default needs 22 GiB" in profile.reason


def test_a_gpu_beside_a_cpu_build_of_torch_means_cpu_and_says_how_to_get_the_other() -> None:
    profile = decide([BIG], "the installed PyTorch is a CPU build")
    assert profile.name == "cpu"
    assert "make clean-venv install" in profile.reason


def test_the_user_can_ask_for_either_profile() -> None:
    assert decide([BIG], None, forced="cpu").name == "cpu"
    assert decide([], None, forced="gpu").experiment == GPU_EXPERIMENT


def test_an_unknown_profile_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"GLEANER_PROFILE='tpu' is not a profile"):
        decide([], None, forced="tpu")


def test_a_gpu_name_with_a_comma_and_a_line_without_numbers_are_read_right() -> None:
    listing = "Odd, name, 10240, 5120\nNVIDIA X, [N/A], [N/A]\n\n"
    assert parse_nvidia_smi(listing) == [Gpu("Odd, name", 10.0, 5.0)]


def test_the_memory_asked_for_is_that_of_the_experiment_file() -> None:
    file = ROOT / "conf" / "experiment" / f"{GPU_EXPERIMENT}.yaml"
    assert yaml.safe_load(file.read_text())["cluster"]["gpu_memory_gib"] == GPU_MEMORY_GIB


def test_the_command_prints_the_override_alone_on_standard_output() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.profile"],
        cwd=ROOT, env={**os.environ, "GLEANER_PROFILE": "cpu"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "experiment=cpu_default\n"
    assert done.stderr == "profile cpu: GLEANER_PROFILE=cpu asks for it\n"
