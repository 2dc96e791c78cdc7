"""Which profile this machine can run, and why: the GPU one with a usable GPU, else the CPU one.

Standard library only: the installer asks before anything is installed. ``python -m
pipeline.profile`` prints ``experiment=NAME`` for the Makefile and the reason on stderr.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from pipeline.errors import UserError

__all__ = ["CPU_EXPERIMENT", "GPU_EXPERIMENT", "GPU_MEMORY_GIB", "Gpu", "Profile"]
__all__ += ["choose_profile", "decide", "parse_nvidia_smi"]

CPU_EXPERIMENT = "cpu_default"
GPU_EXPERIMENT = "gpu_default"
# What GPU_EXPERIMENT needs on one GPU: `cluster.gpu_memory_gib` of its file in conf/experiment,
# where the arithmetic is (a test compares the two).
GPU_MEMORY_GIB = 22.0

FORCE_VARIABLE = "GLEANER_PROFILE"
_QUERY_TIMEOUT_S = 60.0
_TORCH_PROBE = """
import torch
if torch.version.cuda is None:
    print("the installed PyTorch is a CPU build")
elif not torch.cuda.is_available():
    print("PyTorch finds no usable CUDA driver")
else:
    torch.zeros(1, device="cuda")
    print("usable")
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as ``nvidia-smi`` lists it; memory in GiB."""

    name: str
    total_gib: float
    free_gib: float


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile chosen: ``name`` is cpu or gpu, ``experiment`` a file of conf/experiment."""

    name: str
    experiment: str
    reason: str


def parse_nvidia_smi(listing: str) -> list[Gpu]:
    """The GPUs of ``nvidia-smi --query-gpu=name,memory.total,memory.free`` (CSV, MiB).

    >>> parse_nvidia_smi("NVIDIA L4, 23034, 22563")
    [Gpu(name='NVIDIA L4', total_gib=22.5, free_gib=22.0)]
    """
    gpus = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            total_gib, free_gib = (round(int(mib) / 1024, 1) for mib in fields[1:])
            gpus.append(Gpu(fields[0], total_gib, free_gib))
    return gpus


def list_gpus() -> list[Gpu]:
    """The machine's NVIDIA GPUs; empty without a driver that answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,memory.total,memory.free"
    listing = _output([program, query, "--format=csv,noheader,nounits"])
    return parse_nvidia_smi(listing or "")


def torch_problem() -> str | None:
    """Why the installed PyTorch cannot use a GPU; ``None`` where it can or is not installed yet.

    Asked in a process of its own: initialising CUDA here would hold GPU memory.
    """
    if importlib.util.find_spec("torch") is None:
        return None
    answer = (_output([sys.executable, "-c", _TORCH_PROBE]) or "PyTorch's GPU test failed").strip()
    return None if answer == "usable" else answer


def decide(gpus: list[Gpu], problem: str | None, forced: str = "") -> Profile:
    """Choose from what was found. Pure; raises UserError on an unknown ``forced`` profile."""
    if forced not in ("", "cpu", "gpu"):
        raise UserError(f"{FORCE_VARIABLE}={forced!r} is not a profile: use cpu or gpu")
    if forced:
        experiment = GPU_EXPERIMENT if forced == "gpu" else CPU_EXPERIMENT
        return Profile(forced, experiment, f"{FORCE_VARIABLE}={forced} asks for it")
    if not gpus:
        return Profile("cpu", CPU_EXPERIMENT, "no NVIDIA GPU answers (nvidia-smi lists none)")
    best = max(gpus, key=lambda gpu: gpu.free_gib)
    found = f"{best.name} with {best.free_gib:g} of {best.total_gib:g} GiB free"
    if problem is not None:
        remedy = "`make clean-venv install` installs the CUDA build"
        return Profile("cpu", CPU_EXPERIMENT, f"{found}, but {problem}; {remedy}")
    if best.free_gib < GPU_MEMORY_GIB:
        needed = f"{GPU_EXPERIMENT} needs {GPU_MEMORY_GIB:g} GiB"
        return Profile("cpu", CPU_EXPERIMENT, f"{found}, but {needed}")
    return Profile("gpu", GPU_EXPERIMENT, f"{found}; {GPU_MEMORY_GIB:g} GiB needed")


def choose_profile() -> Profile:
    """Look at this machine and decide. ``GLEANER_PROFILE=cpu|gpu`` overrides.

    Raises:
        UserError: the override is neither ``cpu`` nor ``gpu``.
    """
    gpus = list_gpus()
    return decide(gpus, torch_problem() if gpus else None, os.environ.get(FORCE_VARIABLE, ""))


def _output(command: list[str]) -> str | None:
    """Standard output of a command, ``None`` where it fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def main() -> int:
    """Print the Hydra override, and why, for people."""
    try:
        profile = choose_profile()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"profile {profile.name}: {profile.reason}", file=sys.stderr)
    print(f"experiment={profile.experiment}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
