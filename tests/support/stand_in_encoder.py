"""An encoder that makes vectors without encoding: random unit vectors, by the texts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

__all__ = ["DIMENSION", "StandIn", "write_model", "write_texts"]

DIMENSION = 8


class StandIn:
    """Takes the place of an encoder: random unit vectors, by the texts."""

    dimension = DIMENSION
    encoded: ClassVar[list[str]] = []  # every text that was

    def __init__(self, name: str, **_: Any) -> None:
        self.name = name

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        self.encoded.extend(texts)
        seeds = [zlib.crc32(text.encode()) for text in texts]
        rows = [np.random.default_rng(seed).standard_normal(DIMENSION) for seed in seeds]
        vectors = np.array(rows, dtype=np.float32).reshape(-1, DIMENSION)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_model(directory: Path) -> str:
    """A directory that passes for a model's; returns its name."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"hidden_size": DIMENSION}))
    return str(directory)


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """A corpus of these contents."""
    rows = ({"id": str(n), "contents": text} for n, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
