"""Which FAISS index for how many passages and how much memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["AUTO", "Recommendation", "memory_bytes", "recommend"]

AUTO = "auto"
_EXACT_UP_TO = 1_000_000  # beyond that a scan takes tens of milliseconds a query and core
_SHARE = 0.6  # of the memory; the rest is for the encoder, passages and others
_PQ_BYTES = 64
_ID_BYTES = 8  # of each passage, in inverted lists


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A factory string, what it needs, and why."""

    factory: str
    index_bytes: int
    search_parameters: str
    reason: str


def recommend(count: int, dimension: int, memory: int) -> Recommendation:
    """For ``count`` float32 vectors of ``dimension`` on a machine with ``memory`` bytes.

    Exact up to a million passages; beyond that the least compressed inverted lists that fit.

    >>> recommend(40_000, 384, 16 << 30).factory
    'Flat'
    >>> recommend(21_000_000, 768, 256 << 30).factory
    'IVF16384,Flat'
    >>> recommend(21_000_000, 768, 64 << 30).factory
    'IVF16384,SQ8'
    >>> recommend(21_000_000, 768, 16 << 30).factory
    'OPQ64,IVF16384,PQ64'
    >>> recommend(21_000_000, 768, 1 << 30).reason
    '72 bytes a passage, id included, do not fit in memory either: the disk will be read'
    """
    room = _SHARE * memory
    exact = 4 * count * dimension
    if count <= _EXACT_UP_TO and exact <= room:
        return Recommendation("Flat", exact, "", "exact, and small enough for it")
    # FAISS's guidance: 4 to 16 times the square root of the count
    lists = max(16, 2 ** round(math.log2(4 * math.sqrt(count))))
    pq = math.gcd(dimension, _PQ_BYTES)
    parameters = f"nprobe={max(8, lists // 128)}"
    of_lists = 4 * lists * dimension
    for factory, code, reason in (
        (f"IVF{lists},Flat", 4 * dimension, "all vectors fit in memory"),
        (f"IVF{lists},SQ8", dimension, "a byte a dimension fits in memory"),
        (f"OPQ{pq},IVF{lists},PQ{pq}", pq, f"{pq + _ID_BYTES} bytes a passage fit in memory"),
    ):
        size = count * (code + _ID_BYTES) + of_lists
        if size <= room:
            return Recommendation(factory, size, parameters, reason)
    reason = (
        f"{pq + _ID_BYTES} bytes a passage, id included, do not fit in memory either: the disk "
        "will be read"
    )
    return Recommendation(factory, size, parameters, reason)


def memory_bytes() -> int:
    """Of this machine."""
    import psutil

    return int(psutil.virtual_memory().total)
