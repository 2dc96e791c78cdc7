"""Where the operators that PyTorch compiles are kept. Standard library only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["extensions_directory"]


def extensions_directory() -> Path:
    """Where PyTorch keeps the extensions it compiles, one folder an operator.

    It is the environment's own, not the home directory's: the paths compiled in are the
    environment's too, and two checkouts would rebuild each other's.
    """
    default = Path(sys.prefix) / "torch_extensions"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default)
