"""The operator that DeepSpeed compiles on CPU: where it lies, and locks left on it.

Standard library only: the installer uses it before anything is installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline.errors import UserError

__all__ = [
    "SHM_OP",
    "clear_stale_locks",
    "extensions_directory",
    "shm_op_is_built",
    "stale_locks",
]

SHM_OP = "deepspeed_shm_comm"


def extensions_directory() -> Path:
    """Where PyTorch keeps the extensions it compiles, one folder an operator.

    It is the environment's own, not the home directory's: the paths compiled in are the
    environment's too, and two checkouts would rebuild each other's.
    """
    default = Path(sys.prefix) / "torch_extensions"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default)


def shm_op_is_built(directory: Path | None = None) -> bool:
    """Whether DeepSpeed's CPU operator lies compiled in the cache.

    A build that was killed may leave the library without ninja's log: it is compiled again then.
    """
    libraries = (directory or extensions_directory()).glob(f"**/{SHM_OP}/{SHM_OP}.so")
    return any(library.with_name(".ninja_log").exists() for library in libraries)


def stale_locks(directory: Path) -> list[Path]:
    """Lock files below ``directory`` that no running process holds open.

    PyTorch's lock is the mere existence of a file: a process that was killed while it compiled OR
    loaded an operator leaves it, and all later ones wait for it for ever. One that still runs
    keeps the file open.
    """
    locks = list(directory.glob("**/lock")) if directory.is_dir() else []
    if not locks or not Path("/proc/self/fd").is_dir():
        return locks
    held = _open_files()
    return [lock for lock in locks if str(lock.resolve()) not in held]


def clear_stale_locks(directory: Path) -> None:
    """Remove the locks left on a compiled operator.

    Raises UserError for one left on an operator that is not compiled yet: another machine that
    shares this folder may be at it, which cannot be seen from here.
    """
    for lock in stale_locks(directory):
        if shm_op_is_built(lock.parent.parent):
            lock.unlink(missing_ok=True)
            continue
        raise UserError(
            f"{lock} is left from a build that was killed, and DeepSpeed would wait for it "
            f"for ever: remove it with `rm {lock}`"
        )


def _open_files() -> set[str]:
    """Paths of all files that this user's processes hold open (Linux)."""
    paths = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            paths.add(os.readlink(link))
        except OSError:
            continue  # the process or file is gone, or is another user's
    return paths
