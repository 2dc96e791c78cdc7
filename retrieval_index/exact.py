"""Exact search by inner product: a cheap pass over all vectors, then exact scores of the few left.

    s~ = q~ . x~                        of all rows, in blocks; bf16 or fp32
    |s~ - s| <= bound                   by what rounding changed in q and x (Cauchy-Schwarz)
    tau = k-th largest s~ of groups     each group of rows counts once, by its largest s~: k rows
                                        reach tau, so the k-th best s is at least tau - bound
    candidates: s~ >= tau - 2 bound     every row of the true top k is among them
    float64 scores of the candidates    decide, ties by row

So the rows and scores returned are those of a full scan in float64, whatever the pass computes in,
however queries are batched, and however many threads run. bf16 takes a copy of the vectors of half
their size; fp32 takes none and reads them where they are (they may be memory-mapped).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["ExactSearch", "fastest_dtype"]

_BLOCK_ROWS = 65_536
_GROUPED = 32  # rows a group
_BATCH = 64  # queries at once
_PAIRS = 65_536  # query and candidate, scored at once
_TRIED_ROWS = 16_384  # of the measurement that chooses between bf16 and fp32
_BF16_HALF_ULP = 2.0**-8  # relative: 8 bits of significand
_FP32_HALF_ULP = 2.0**-24


@dataclass(slots=True)
class _Candidates:
    """Pairs of a query and a row that may belong to the query's top k, and where ``s~`` is."""

    queries: list[np.ndarray]
    rows: list[np.ndarray]
    approximate: list[np.ndarray]


class ExactSearch:
    """Top k by inner product over float32[N, d] vectors; ValueError where one is not finite.

    ``dtype`` is what the first pass computes in: ``bf16``, ``fp32``, or ``auto`` (measured here,
    once; on a GPU bf16). Runs with torch's threads of the process. ``device`` is where the first
    pass runs; the exact scores are always computed on the CPU.
    """

    def __init__(self, vectors: np.ndarray, dtype: str = "auto", device: str = "cpu") -> None:
        import torch

        self._vectors, self._device = vectors, device
        if dtype == "auto" and device != "cpu":
            dtype = "bf16"
        self.dtype = fastest_dtype(vectors) if dtype == "auto" else dtype
        if device != "cpu":  # sums of bf16 products in fp32, as the bound has it
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        exact = _tensor(vectors)
        self._rounded = (
            exact.to(device)
            if self.dtype == "fp32"
            else torch.empty(vectors.shape, dtype=torch.bfloat16, device=device)
        )
        self._longest, self._moved = 0.0, 0.0  # largest |x|, largest |x~ - x|
        for rows in _blocks(len(vectors)):
            block = exact[rows].to(device)
            if self.dtype == "bf16":
                self._rounded[rows] = block.to(torch.bfloat16)
                change = (self._rounded[rows].float() - block).norm(dim=1)
                self._moved = max(self._moved, float(change.max()))
            lengths = block.norm(dim=1)
            if not bool(lengths.isfinite().all()):
                row = rows.start + int((~lengths.isfinite()).nonzero()[0])
                raise ValueError(f"the vector of row {row} is not finite")
            self._longest = max(self._longest, float(lengths.max()))

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """``(scores float64[n, k], rows int64[n, k])`` of float32[n, d] queries, best first; a row
        of -1 where there are fewer vectors than ``top_k``."""
        if top_k > len(self):
            scores, rows = self.search(queries, len(self))
            fill = ((0, 0), (0, top_k - len(self)))
            return (
                np.pad(scores, fill, constant_values=-np.inf),
                np.pad(rows, fill, constant_values=-1),
            )
        scores = np.empty((len(queries), top_k), dtype=np.float64)
        rows = np.empty((len(queries), top_k), dtype=np.int64)
        for start in range(0, len(queries), _BATCH):
            part = slice(start, start + _BATCH)
            scores[part], rows[part] = self._search(queries[part], top_k)
        return scores, rows

    def _search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        exact = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self._device)
        rounded = exact.to(self._rounded.dtype)
        bound = self._bound(exact, rounded)
        best = torch.full(
            (len(queries), top_k), -torch.inf, device=self._device
        )  # the largest s~ of groups so far
        found = _Candidates([], [], [])
        for block in _blocks(len(self)):
            approximate = rounded @ self._rounded[block].T
            peaks, grouped = _peaks(approximate)
            best = torch.cat([best, peaks.float()], dim=1).topk(top_k, dim=1).values
            _collect(found, grouped, peaks, self._threshold(best, bound), block.start)
        return self._ranked(queries, found, self._threshold(best, bound).cpu().numpy(), top_k)

    def _bound(self, exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        """float32[n]: how far ``s~``, before it is rounded itself, may be from ``s``."""
        length = rounded.float().norm(dim=1)
        moved = (rounded.float() - exact).norm(dim=1)
        summing = 2 * self._vectors.shape[1] * _FP32_HALF_ULP  # of d products, in any order
        return moved * self._longest + length * (
            self._moved + summing * (self._longest + self._moved)
        )

    def _threshold(self, best: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        """float32[n]: what ``s~`` of a row of the true top k is at least."""
        tau = best[:, -1]
        half_ulp = _BF16_HALF_ULP if self.dtype == "bf16" else _FP32_HALF_ULP
        # twice: tau was rounded, and what it is compared with was
        return tau - 2 * bound - 2 * half_ulp * (tau.abs() + 2 * bound)

    def _ranked(
        self, queries: np.ndarray, found: _Candidates, threshold: np.ndarray, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score the candidates exactly and sort them."""
        of = np.concatenate(found.queries)
        rows = np.concatenate(found.rows)
        kept = np.concatenate(found.approximate) >= threshold[of]
        of, rows = of[kept], rows[kept]
        exact = np.empty(len(rows), dtype=np.float64)
        for start in range(0, len(rows), _PAIRS):
            part = slice(start, start + _PAIRS)
            left = queries[of[part]].astype(np.float64)
            exact[part] = (left * self._vectors[rows[part]].astype(np.float64)).sum(axis=1)
        order = np.lexsort((rows, -exact, of))
        first = np.searchsorted(of[order], np.arange(len(queries)))
        chosen = order[first[:, None] + np.arange(top_k)]
        return exact[chosen], rows[chosen]


def _tensor(vectors: np.ndarray) -> torch.Tensor:
    """The same memory, which may be read-only: nothing here writes to it."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(vectors)


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, rows))


def _peaks(approximate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(peaks[n, g], grouped[n, r, g])``: row ``i`` of a block is in group ``i % g``, as its
    ``i // g``-th. Where the last rows are too few for the groups, places are filled by -inf."""
    import torch

    n, rows = approximate.shape
    size = min(_GROUPED, rows)
    groups = -(-rows // size)
    if groups * size != rows:
        approximate = torch.nn.functional.pad(
            approximate, (0, groups * size - rows), value=-torch.inf
        )
    grouped = approximate.view(n, size, groups)
    return grouped.amax(dim=1), grouped


def _collect(
    found: _Candidates,
    grouped: torch.Tensor,
    peaks: torch.Tensor,
    threshold: torch.Tensor,
    first_row: int,
) -> None:
    """Note the rows of a block that reach the threshold; only groups whose peak does are read."""
    import torch

    of, group = (peaks.float() >= threshold[:, None]).nonzero(as_tuple=True)
    values = grouped[of, :, group].float()  # [pairs, r]
    reached = (values >= threshold[of][:, None]) & (values > -torch.inf)  # no filled place
    pair, place = reached.nonzero(as_tuple=True)
    found.queries.append(of[pair].cpu().numpy())
    found.rows.append((place * grouped.shape[2] + group[pair]).cpu().numpy() + first_row)
    found.approximate.append(values[pair, place].cpu().numpy())


def fastest_dtype(vectors: np.ndarray) -> str:
    """``bf16`` or ``fp32``: in which this CPU multiplies a block sooner. Few vectors: ``fp32``."""
    import torch

    if len(vectors) < _TRIED_ROWS:
        return "fp32"
    block = _tensor(np.ascontiguousarray(vectors[:_TRIED_ROWS]))
    took_s = {
        name: _fastest_s(block[:32].to(dtype), block.to(dtype).T)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return min(took_s, key=lambda name: took_s[name])


def _fastest_s(left: Any, right: Any) -> float:
    """Seconds of a product: the best of a few."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return min(times)
