"""Groups and evaluations as bytes and back: MessagePack, no code in it.

    decode(encode(group), Group)    # equal to ``group``, arrays bit for bit

The constructors of ``pipeline.types`` check what comes back, as they check everything.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np

__all__ = ["decode", "encode"]

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """A dataclass of ``pipeline.types`` (or made of them) as MessagePack."""
    return msgspec.msgpack.encode(value, enc_hook=_plain)


def decode(content: bytes, kind: type[T]) -> T:
    """The inverse. Raises ValueError for bytes that are no ``kind``."""
    return msgspec.msgpack.decode(content, type=kind, dec_hook=_array)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tobytes())
    raise NotImplementedError(f"{type(value).__name__} cannot be encoded")


def _array(kind: type, value: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise NotImplementedError(f"{kind.__name__} cannot be decoded")
    dtype, content = value
    return np.frombuffer(content, np.dtype(dtype)).copy()
