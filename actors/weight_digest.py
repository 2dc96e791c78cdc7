"""The digest of a set of named tensors: what "these are the weights that were sent" means.

Learner and engines compute it independently, each from the bytes it holds, and the publisher
compares. Numpy and hashlib only, so that every process can import it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["WeightDigest", "digest_tensors"]


class WeightDigest:
    """SHA-256 over name, dtype, shape and bytes of tensors, taken in the order of their names.

    Tensors may be added in any order and freed at once: each is hashed when it is added, and
    the digest is the hash of these hashes, sorted by name.

    >>> one, two = WeightDigest(), WeightDigest()
    >>> one.add("a", np.zeros(2)); one.add("b", np.ones(2))
    >>> two.add("b", np.ones(2)); two.add("a", np.zeros(2))
    >>> one.hexdigest() == two.hexdigest()
    True
    """

    def __init__(self) -> None:
        self._hashes: dict[str, bytes] = {}

    def add(self, name: str, tensor: Any) -> None:
        """Add one numpy array or torch tensor (any device). Raises ValueError on a repeat."""
        if name in self._hashes:
            raise ValueError(f"tensor {name!r} was sent twice")
        dtype, data = _raw(tensor)
        head = f"{name}|{dtype}|{tuple(tensor.shape)}|".encode()
        hasher = hashlib.sha256(head)
        hasher.update(data)
        self._hashes[name] = hasher.digest()

    def hexdigest(self) -> str:
        """The digest of everything added so far, 64 hexadecimal digits."""
        total = hashlib.sha256()
        for name in sorted(self._hashes):
            total.update(self._hashes[name])
        return total.hexdigest()


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """The `WeightDigest` of a whole mapping of name to numpy array or torch tensor."""
    digest = WeightDigest()
    for name, tensor in tensors.items():
        digest.add(name, tensor)
    return digest.hexdigest()


def _raw(tensor: Any) -> tuple[str, memoryview]:
    """The dtype's name without its library, and the bytes in C order."""
    if isinstance(tensor, np.ndarray):
        return str(tensor.dtype), np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data
    return str(tensor.dtype).removeprefix("torch."), data
