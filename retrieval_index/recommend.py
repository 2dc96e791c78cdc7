"""Which FAISS index for how many passages and how much memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["AUTO", "Recommendation", "memory_bytes", "recommend"]

AUTO = "auto"
_EXACT_UP_TO = 1_000_000  # beyond that a scan takes tens of milliseconds a query and core
_SHARE = 0.6  # of the memory; the rest is for the encoder, passages and others
_PQ_BYTES = 64


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
    """
    room = _SHARE * memory
    exact = 4 * count * dimension
    if count <= _EXACT_UP_TO and exact <= room:
        return Recommendation("Flat", exact, "", "exact, and small enough for it")
    # FAISS's guidance: 4 to 16 times the square root of the count
    lists = max(16, 2 ** round(math.log2(4 * math.sqrt(count))))
    parameters = f"nprobe={max(8, lists // 128)}"
    if exact <= room:
        return Recommendation(f"IVF{lists},Flat", exact, parameters, "all vectors fit in memory")
    if count * dimension <= room:
        return Recommendation(
            f"IVF{lists},SQ8", count * dimension, parameters, "a byte a dimension fits in memory"
        )
    pq = math.gcd(dimension, _PQ_BYTES)
    return Recommendation(
        f"OPQ{pq},IVF{lists},PQ{pq}", count * pq, parameters, f"{pq} bytes a passage fit in memory"
    )


def memory_bytes() -> int:
    """Of this machine."""
    import psutil

    return int(psutil.virtual_memory().total)
