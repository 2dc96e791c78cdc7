"""The address of a judge's endpoint is written to logs, saved with a run, and shown."""

from __future__ import annotations

from pipeline.errors import UserError

__all__ = ["check_no_secret"]


def check_no_secret(url: str, where: str, api_key_env: str) -> None:
    """Raise UserError, which does not repeat ``url``, where it could hold a secret; ``where`` it
    was written, and ``api_key_env``, the variable for it."""
    if "@" in url or "?" in url:
        raise UserError(
            f"{where} must hold no user name, password or parameters: it is written to logs. Put "
            f"the key into the environment variable {api_key_env}"
        )
