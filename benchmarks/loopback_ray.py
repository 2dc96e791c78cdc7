"""What Ray's processes need in their environment to stay on loopback, behind a token."""

from __future__ import annotations

import secrets
from pathlib import Path

__all__ = ["loopback_environment"]


def loopback_environment(directory: Path) -> dict[str, str]:
    """For head, nodes and clients alike; the token is a new file in ``directory``."""
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 by default: actors would starve beside others
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 becomes the machine's address
    }
