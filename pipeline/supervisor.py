"""The process that a training run is started as: the driver is its child, started again if it dies.

    python -m pipeline ──► supervisor ──► driver (resume=auto)     dies? once more, at most N times
                               └── SIGTERM, SIGINT: passed on, then nothing is started again

What is worth another try is what the machine did: a signal (out of memory, a crash in a library),
an error nobody foresaw, a pool that is gone. A user's error, or a run that stopped itself for a
reason, would only repeat itself. Before another try nothing is left of the one before: what a
killed driver leaves behind comes to the supervisor (Linux), which waits for it, and then ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil

__all__ = [
    "INFRASTRUCTURE_EXIT",
    "STOPPED_EXIT",
    "UNFORESEEN_EXIT",
    "die_with_parent",
    "is_supervised",
    "supervise",
]

#: Exit codes of a driver that another try may help (sysexits.h: TEMPFAIL and SOFTWARE).
INFRASTRUCTURE_EXIT = 75
UNFORESEEN_EXIT = 70

#: Of a driver under a supervisor whose run stopped itself for its user to decide something
#: (TEMPFAIL's neighbour CONFIG): for the caller a user's error, and never worth another try.
STOPPED_EXIT = 78

_USER_EXIT = 2
_PAUSE_S = 2.0  # before another try
_MARK = "GLEANER_SUPERVISED"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LEAVING_TIMEOUT_S = 15.0  # for the actors of a driver that died to notice it


def is_supervised() -> bool:
    """Whether this process is a driver that a supervisor started."""
    return _MARK in os.environ


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its supervisor ends, however that ends."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended just now
        os.kill(os.getpid(), signal.SIGTERM)


def supervise(
    arguments: Sequence[str],
    run_dir: Path,
    max_restarts: int,
    *,
    program: Sequence[str] = (sys.executable, "-m", "pipeline"),
) -> int:
    """Run ``program`` with ``arguments`` in ``run_dir``, from the second time on with
    ``resume=auto``. Returns the exit code of the last driver (128 + N where signal N ended it)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    own = [a for a in arguments if a.partition("=")[0] not in ("run_dir", "resume")]
    wanted = [a for a in arguments if a.partition("=")[0] == "resume"]
    for restart in range(max_restarts + 1):
        resume = ["resume=auto"] if restart else wanted
        code, stopped = _run_once([*program, *own, f"run_dir={_quoted(run_dir)}", *resume])
        if stopped or not _is_worth_another(code, restart):
            break
        time.sleep(_PAUSE_S)
        _end_what_is_left()
        if restart < max_restarts:
            print(
                f"the driver {_how(code)}; it goes on in {run_dir} "
                f"(restart {restart + 1} of {max_restarts})",
                file=sys.stderr,
                flush=True,
            )
    else:
        print(
            f"the driver {_how(code)}, and none of {max_restarts} restarts is left "
            f"(supervisor.max_restarts). Resume by hand: resume=auto run_dir={run_dir}",
            file=sys.stderr,
        )
    if code == STOPPED_EXIT:
        return _USER_EXIT
    return code if code >= 0 else 128 - code


def _run_once(command: Sequence[str]) -> tuple[int, bool]:
    """The child's return code (minus N for signal N), and whether it was asked to stop."""
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        child.send_signal(signum)

    # a process group of its own: a terminal's Ctrl-C reaches it once, from here
    child = subprocess.Popen(command, env={**os.environ, _MARK: "1"}, process_group=0)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait(), stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_what_is_left() -> None:
    """Wait for the processes that a driver left behind, and end those that stay."""
    left = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(left, timeout=_LEAVING_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_LEAVING_TIMEOUT_S)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _is_worth_another(code: int, restart: int) -> bool:
    """What was no user's error at first (2) is none after a death: the machine is not ready yet."""
    if code == _USER_EXIT:
        return restart > 0
    return code < 0 or code in (INFRASTRUCTURE_EXIT, UNFORESEEN_EXIT)


def _how(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    if code == _USER_EXIT:
        return "could not start again"
    lost = code == INFRASTRUCTURE_EXIT
    return "lost a pool that it needs" if lost else "ended by an error that nobody foresaw"


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
