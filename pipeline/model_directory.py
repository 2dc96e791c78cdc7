"""What makes a directory a model: a Hugging Face directory, whole, or a name on the model hub.

Standard library only, but for the hub's client, which is imported when a name is looked up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pipeline.errors import UserError

__all__ = ["TOKENIZER_FILES", "check_model_directory", "from_hub", "looks_like_a_hub_name"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any one of these

_T = TypeVar("_T")


def check_model_directory(
    directory: Path, path: str | None = None, *, key: str = "policy.path"
) -> None:
    """Configuration, safetensors weights and tokenizer are there and readable.

    ``path`` is what the user wrote under ``key``, for the messages. Raises UserError naming what is
    missing.
    """
    said = f"{key}={path or directory}"
    if not directory.exists():
        raise UserError(
            f"{said}: no such directory; give a Hugging Face model directory or a hub "
            "name such as Qwen/Qwen3-1.7B (`make warmstart` makes the small policy)"
        )
    if not directory.is_dir():
        raise UserError(f"{said} is a file; give the directory that holds config.json")
    _check_json(directory / "config.json", f"{said} is no model directory")
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"{said} has no *.safetensors: save its weights in that format with "
            "model.save_pretrained(DIR)"
        )
    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"{said} has no tokenizer (tokenizer.json): copy the tokenizer's files "
            "into it, e.g. with `AutoTokenizer.from_pretrained(BASE).save_pretrained(DIR)`"
        )
    _check_json(directory / "tokenizer_config.json", f"{said} has an incomplete tokenizer")


def looks_like_a_hub_name(path: str) -> bool:
    """``owner/name`` whose first part is no folder here."""
    parts = path.split("/")
    ok = len(parts) == 2 and all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part) for part in parts)
    return ok and not Path(parts[0]).exists()


def from_hub(name: str, download: Callable[[str], _T]) -> _T:
    """``download(name)``; a UserError with the hub's own words where that fails."""
    try:
        return download(name)
    except Exception as error:  # transport boundary: the hub's client raises a dozen types
        raise UserError(
            f"policy.path={name} is no directory, and the model hub did not serve it: "
            f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
        ) from None


def _check_json(file: Path, what: str) -> None:
    """A file that holds a JSON object."""
    if not file.is_file():
        raise UserError(f"{what}: {file.name} is missing")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{file} does not hold a JSON object")
