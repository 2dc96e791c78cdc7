"""Cuts samples into micro-batches for the learner's ranks. No token is computed twice.

The samples of a group start with the same question and often the same first rounds. In a causal
model a hidden state depends on its prefix alone, so each DISTINCT prefix of a micro-batch is
one node of a prefix tree and is computed once; only attention looks along whole trajectories, and
there too each node asks once:

    samples        nodes (token @ position)      keys (node of every token)   queries (new nodes)
    7 8 9 [4]      0: 7@0  1: 8@1  2: 9@2        0 1 2                        0 1 2
    7 8 5 6 [4]    3: 5@2  4: 6@3                0 1 3 4                      3 4

The last trained token, in brackets, is predicted only: it and what comes after it are not computed.
In the last layer only nodes whose next token is trained ask, for nothing looks at the others after
it. All of this is exact. Only attention is padded, and only among rows of similar shape.

Legend: ``_U`` one value a node, ``_P`` a trained token, ``_K`` a node whose next token is trained.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.attention_plan import AttentionPlan, Row, new_nodes, nobody_asks, plan_attention
from pipeline.types import Sample

__all__ = [
    "MicroBatch",
    "TokenLogprobs",
    "TrainBatch",
    "make_rank_batches",
    "to_samples",
]

_MAX_ROUNDS = 2**15  # round ids are int16


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One forward and backward pass. Trained token ``i`` is predicted by node
    ``head_nodes_K[head_index_P[i]]`` and has the id ``targets_P[i]``."""

    token_ids_U: np.ndarray  # int64
    positions_U: np.ndarray  # int64, place in its trajectory
    attention: AttentionPlan  # every node asks
    last_attention: AttentionPlan  # of the last layer: ``head_nodes_K`` ask
    head_nodes_K: np.ndarray  # int64
    head_index_P: np.ndarray  # int64
    targets_P: np.ndarray  # int64
    sampler_logprobs_P: np.ndarray  # float32, as sampled
    proximal_logprobs_P: np.ndarray | None  # float32, of the policy when the train step began
    advantages_P: np.ndarray  # float32
    loss_weights_P: np.ndarray  # float32
    ref_logprobs_P: np.ndarray | None  # float32
    versions_P: np.ndarray  # int64, weight version that sampled it
    round_P: np.ndarray  # int64, equal within one round of one sample
    sample_P: np.ndarray  # int64, index of the sample among all that were batched
    place_P: np.ndarray  # int64, index of the token in its sample

    @property
    def num_nodes(self) -> int:
        """U: tokens that are really computed."""
        return len(self.token_ids_U)

    @property
    def num_trained(self) -> int:
        """P: policy tokens."""
        return len(self.targets_P)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """The share of one rank. All ranks have the same number of micro-batches and normaliser."""

    micro_batches: tuple[MicroBatch, ...]
    normaliser: float
    version: int = 0  # of the weights that the train step starts from


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities of trained tokens, addressed like ``MicroBatch``'s."""

    sample_P: np.ndarray  # int64
    place_P: np.ndarray  # int64
    logprobs_P: np.ndarray  # float32


def make_rank_batches(
    samples: Sequence[Sample],
    normaliser: float,
    world_size: int,
    tokens_per_micro_batch: int,
    version: int = 0,
) -> list[TrainBatch]:
    """One batch a rank, balanced by computed tokens.

    A micro-batch computes at most ``tokens_per_micro_batch`` nodes (a single longer trajectory
    gets one of its own). Samples of a group stay together as far as that allows; neighbours
    have similar lengths. Ranks with less to do get empty micro-batches, which train nothing.
    """
    if not (normaliser > 0 and math.isfinite(normaliser)):
        raise ValueError(f"the normaliser must be positive and finite, got {normaliser}")
    total = sum(map(_length, samples))
    budget = max(1, min(tokens_per_micro_batch, math.ceil(total / world_size)))
    shares = _balance(_families(samples, budget), world_size)
    packed = [list(_pack(share, tokens_per_micro_batch)) for share in shares]
    count = max(1, *(len(micro_batches) for micro_batches in packed))
    return [
        TrainBatch(
            micro_batches=tuple(
                _micro_batch(samples, indices)
                for indices in [*micro_batches, *[[]] * (count - len(micro_batches))]
            ),
            normaliser=normaliser,
            version=version,
        )
        for micro_batches in packed
    ]


def to_samples(samples: Sequence[Sample], parts: Iterable[TokenLogprobs]) -> list[np.ndarray]:
    """float32[L] a sample from the ranks' parts; 0 where the policy did not sample."""
    arrays = [np.zeros(len(s.token_ids), np.float32) for s in samples]
    for part in parts:
        for i in np.unique(part.sample_P).tolist():
            chosen = part.sample_P == i
            arrays[i][part.place_P[chosen]] = part.logprobs_P[chosen]
    return arrays


@dataclass(frozen=True, slots=True)
class _Family:
    """Samples with much in common: indices in order of their tokens, and their distinct nodes."""

    indices: list[int]
    num_nodes: int
    longest: int


def _families(samples: Sequence[Sample], budget: int) -> list[_Family]:
    """Groups, cut where one has more nodes than ``budget``."""
    groups: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.group_id, []).append(i)
    return [f for indices in groups.values() for f in _cut(samples, indices, budget)]


def _cut(samples: Sequence[Sample], indices: list[int], budget: int) -> Iterator[_Family]:
    chosen: list[int] = []
    nodes = longest = 0
    for i in sorted(indices, key=lambda i: samples[i].token_ids[: _length(samples[i])].tolist()):
        length = _length(samples[i])
        new = length - (_shared(samples, chosen[-1], i) if chosen else 0)
        if chosen and nodes + new > budget:
            yield _Family(chosen, nodes, longest)
            chosen, nodes, longest, new = [], 0, 0, length
        chosen.append(i)
        nodes, longest = nodes + new, max(longest, length)
    if chosen:
        yield _Family(chosen, nodes, longest)


def _length(sample: Sample) -> int:
    """Tokens before the last trained one: what must be computed to predict that."""
    trained = np.flatnonzero(sample.loss_mask)
    return int(trained[-1]) if len(trained) else 1


def _shared(samples: Sequence[Sample], i: int, j: int) -> int:
    """Length of the common prefix of two samples."""
    a, b = samples[i].token_ids, samples[j].token_ids
    n = min(_length(samples[i]), _length(samples[j]))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _balance(families: list[_Family], world_size: int) -> list[list[_Family]]:
    """Longest-processing-time-first: the next largest family to the rank with least to do."""
    shares: list[list[_Family]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for family in sorted(families, key=lambda f: -f.num_nodes):
        load, rank = heapq.heappop(loads)
        shares[rank].append(family)
        heapq.heappush(loads, (load + family.num_nodes, rank))
    return shares


def _pack(families: list[_Family], budget: int) -> Iterator[list[int]]:
    """Sample indices of each micro-batch, longest first, so that rows are of similar length."""
    indices: list[int] = []
    nodes = 0
    for family in sorted(families, key=lambda f: -f.longest):
        if indices and nodes + family.num_nodes > budget:
            yield indices
            indices, nodes = [], 0
        indices = indices + family.indices
        nodes += family.num_nodes
    if indices:
        yield indices


def _micro_batch(samples: Sequence[Sample], indices: list[int]) -> MicroBatch:
    """The prefix tree of some samples, and what is trained on it."""
    if not indices:
        return _empty()
    chosen, paths = [samples[i] for i in indices], _tree(samples, indices)
    num_nodes = max(int(path.max()) for path in paths) + 1
    token_ids_U, positions_U = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
    for path, sample in zip(paths, chosen, strict=True):
        token_ids_U[path] = sample.token_ids[: len(path)]
        positions_U[path] = np.arange(len(path))
    rows = list(new_nodes(paths))
    attention = plan_attention(rows)
    places = [np.flatnonzero(s.loss_mask) for s in chosen]
    predictors_P = np.concatenate([r[p - 1] for r, p in zip(paths, places, strict=True)])
    head_nodes_K, head_index_P = np.unique(predictors_P, return_inverse=True)

    is_head_U = np.zeros(num_nodes, bool)
    is_head_U[head_nodes_K] = True
    head_rows = [Row(r.path, r.places_Q[is_head_U[r.path[r.places_Q]]]) for r in rows]

    def gather(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([a[p] for a, p in zip(arrays, places, strict=True)])

    sample_P = np.repeat(indices, [len(p) for p in places]).astype(np.int64)
    return MicroBatch(
        token_ids_U=token_ids_U,
        positions_U=positions_U,
        attention=attention,
        last_attention=plan_attention(head_rows) if len(head_nodes_K) else nobody_asks(attention),
        head_nodes_K=head_nodes_K.astype(np.int64),
        head_index_P=head_index_P.astype(np.int64),
        targets_P=gather(s.token_ids for s in chosen).astype(np.int64),
        sampler_logprobs_P=gather(s.sampler_logprobs for s in chosen),
        proximal_logprobs_P=_optional("proximal_logprobs", chosen, places),
        advantages_P=gather(s.advantages for s in chosen),
        loss_weights_P=gather(s.loss_weights for s in chosen),
        ref_logprobs_P=_optional("ref_logprobs", chosen, places),
        versions_P=gather(s.versions for s in chosen).astype(np.int64),
        round_P=sample_P * _MAX_ROUNDS + gather(s.round_ids for s in chosen),
        sample_P=sample_P,
        place_P=np.concatenate(places).astype(np.int64),
    )


def _tree(samples: Sequence[Sample], indices: list[int]) -> list[np.ndarray]:
    """Each sample's path: the nodes of its tokens before the last trained one. A shared prefix has
    the nodes of the one before."""
    paths: list[np.ndarray] = []
    num_nodes = 0
    for b, i in enumerate(indices):
        length = _length(samples[i])
        shared = _shared(samples, indices[b - 1], i) if b else 0
        new = np.arange(num_nodes, num_nodes + length - shared)
        paths.append(np.concatenate([paths[-1][:shared], new]) if b else new)
        num_nodes += length - shared
    return paths


def _optional(
    name: str, chosen: Sequence[Sample], places: Sequence[np.ndarray]
) -> np.ndarray | None:
    """float32[P] where every sample has it, ``None`` where none has."""
    arrays = [getattr(s, name) for s in chosen]
    if all(a is None for a in arrays):
        return None
    if any(a is None for a in arrays):
        raise ValueError(f"some samples of a batch have {name}, some have not")
    return np.concatenate([a[p] for a, p in zip(arrays, places, strict=True)])


def _empty() -> MicroBatch:
    """Two tokens that train nothing: for collectives that need every rank to take part."""
    none, weightless = np.zeros(0, np.int64), np.zeros(0, np.float32)
    everywhere = plan_attention([Row(np.arange(2), np.arange(2))])
    return MicroBatch(
        token_ids_U=np.zeros(2, np.int64),
        positions_U=np.arange(2),
        attention=everywhere,
        last_attention=nobody_asks(everywhere),
        head_nodes_K=none,
        head_index_P=none,
        targets_P=none,
        sampler_logprobs_P=weightless,
        proximal_logprobs_P=weightless,
        advantages_P=weightless,
        loss_weights_P=weightless,
        ref_logprobs_P=weightless,
        versions_P=none,
        round_P=none,
        sample_P=none,
        place_P=none,
    )
