"""Files of flat FAISS indexes, written shard by shard and memory-mapped: memory does not grow with
the corpus.

FAISS itself writes an index that it holds in memory whole, 64 GB for 21 million vectors of 768
dimensions. A flat file is FAISS's header, in which two numbers depend on the count, and vectors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["read_flat", "write_flat"]

_KIND = b"IxFI"  # FAISS's name of a flat inner-product index
_COUNT_AT = 8  # int64, after the type's four characters and the dimension
_VALUES_FROM_END = 8  # uint64: number of floats that follow


def write_flat(file: BinaryIO, dimension: int, count: int, shards: Iterable[np.ndarray]) -> None:
    """What ``faiss.write_index`` writes of an ``IndexFlatIP`` with these float32[n, d] shards.

    Raises ValueError where the shards do not hold ``count`` vectors.
    """
    file.write(_header(dimension, count))
    written = 0
    for shard in shards:
        file.write(np.ascontiguousarray(shard, dtype=np.float32).data)
        written += len(shard)
    if written != count:
        raise ValueError(f"{written} vectors in the shards, expected {count}")


def read_flat(path: Path) -> np.ndarray:
    """float32[n, d]: the vectors of a flat inner-product index, memory-mapped and read-only, pages
    shared with other processes.

    Raises ValueError where the file is of another kind or cut off.
    """
    with path.open("rb") as file:
        start = file.read(size_of_header := len(_header(1, 0)))
    if len(start) < size_of_header:
        raise ValueError("not a flat inner-product index of FAISS")
    dimension, count = struct.unpack_from("<iq", start, 4)
    if start[:4] != _KIND or dimension < 1 or count < 0:
        raise ValueError("not a flat inner-product index of FAISS")
    size = len(start) + 4 * dimension * count
    if path.stat().st_size != size:
        raise ValueError(f"{path.stat().st_size:,} bytes, {size:,} for {count:,} vectors")
    if start != _header(dimension, count):
        raise ValueError("not a flat inner-product index of FAISS")
    if count == 0:
        return np.empty((0, dimension), dtype=np.float32)
    return np.memmap(path, np.float32, "r", offset=len(start), shape=(count, dimension))


def _header(dimension: int, count: int) -> bytes:
    """Of an empty index, as this version of FAISS writes it, with the numbers put in."""
    header = bytearray(_of_rows(np.empty((0, dimension), dtype=np.float32)))
    _put_count(header, dimension, 1)
    one = np.ones((1, dimension), dtype=np.float32)
    if bytes(header) + one.tobytes() != _of_rows(one):
        raise RuntimeError("this version of FAISS writes flat indexes in another way")
    _put_count(header, dimension, count)
    return bytes(header)


def _put_count(header: bytearray, dimension: int, count: int) -> None:
    struct.pack_into("<q", header, _COUNT_AT, count)
    struct.pack_into("<Q", header, len(header) - _VALUES_FROM_END, count * dimension)


def _of_rows(rows: np.ndarray) -> bytes:
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    if len(rows):
        index.add(rows)
    return bytes(faiss.serialize_index(index).tobytes())
