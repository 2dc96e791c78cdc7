"""A disk of the chaos test's own, which it can make full: a tmpfs in a private mount namespace.

    enter_private_mounts(...)    this process again, where it may mount what nobody else sees
    SmallDisk(directory)         a tmpfs there; `full` leaves little room on it

Where mounting is not permitted, the chaos test injects the error instead, and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.checkpoint import DIRECTORY_NAME as CHECKPOINTS

__all__ = ["SmallDisk", "enter_private_mounts"]

_MARK = "GLEANER_PRIVATE_MOUNTS"
_UNSHARE = ("unshare", "--map-root-user", "--mount")
_MOUNT = ("mount", "-t", "tmpfs", "-o")
_SIZE = 2 * 2**30  # an upper bound: pages that nothing was written to take no memory


def enter_private_mounts(module: str, arguments: Sequence[str]) -> str:
    """Become ``python -m module arguments`` in a mount namespace of its own, once. Returns there
    with "", and where that is not permitted with the reason."""
    if _MARK in os.environ:
        return ""
    with tempfile.TemporaryDirectory() as directory:
        try:
            tried = subprocess.run(
                [*_UNSHARE, *_MOUNT, "size=1m", "none", directory],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except OSError as error:
            return str(error)
    if tried.returncode != 0:
        return tried.stderr.strip() or f"exit code {tried.returncode}"
    command = [*_UNSHARE, sys.executable, "-m", module, *arguments]
    os.execvpe(command[0], command, {**os.environ, _MARK: "1"})


class SmallDisk:
    """A tmpfs, mounted at ``directory``. Raises CalledProcessError where that is not permitted."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._mount(f"size={_SIZE}")

    @contextmanager
    def full(self, room: int) -> Iterator[None]:
        """Meanwhile only ``room`` bytes more can be written."""
        found = os.statvfs(self._directory)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self._mount(f"remount,size={used + room}")
        try:
            yield
        finally:
            self._mount(f"remount,size={_SIZE}")

    def keep(self, directory: Path) -> None:
        """Copy it, but for the checkpoints: it ends with this process."""
        without = shutil.ignore_patterns(CHECKPOINTS)
        shutil.copytree(self._directory, directory, ignore=without)

    def _mount(self, options: str) -> None:
        subprocess.run([*_MOUNT, options, "none", str(self._directory)], check=True)
