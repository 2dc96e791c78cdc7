"""A retriever whose start is held up: an outage then lasts as long as a test needs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from actors.retriever import Retriever

__all__ = ["gated_retriever"]

_LONGEST_S = 240.0


def gated_retriever(gate: Path, **arguments: Any) -> Retriever:
    """Make a Retriever once the file ``gate`` is not there (any more)."""
    deadline = time.monotonic() + _LONGEST_S
    while gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{gate} is there for more than {_LONGEST_S:g} s")
        time.sleep(0.05)
    return Retriever(**arguments)
