"""Places at which the chaos test makes a run fail. Off unless ``GLEANER_FAILPOINTS`` names a
directory.

    GLEANER_FAILPOINTS=/tmp/faults          # for the whole run, set by the benchmarks
    echo "error" > /tmp/faults/judge        # from now on, until the file is gone

A file's content is what should happen there; what it means is up to the place.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["VARIABLE", "fail_as_full_disk", "failpoint", "failpoint_environment"]

VARIABLE = "GLEANER_FAILPOINTS"


def failpoint(place: str) -> list[str]:
    """The words that ``place`` is to fail by; empty: it is to work."""
    directory = os.environ.get(VARIABLE)
    if not directory:
        return []
    try:
        return (Path(directory) / place).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def failpoint_environment() -> dict[str, str]:
    """What another process needs to fail where this one would."""
    directory = os.environ.get(VARIABLE)
    return {VARIABLE: directory} if directory else {}


def fail_as_full_disk(place: str) -> None:
    """Raise what a full disk raises, where the failpoint says ``full``."""
    if failpoint(place) == ["full"]:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (failpoint {place})")
