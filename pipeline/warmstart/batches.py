"""Length-bucketed batches of encoded episodes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.warmstart.encode import EncodedEpisode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "bucketed", "collate"]

_POOL = 256  # episodes sorted by length together


@dataclass(frozen=True, slots=True)
class Batch:
    """Episodes padded on the right; causal attention needs no mask then.

    ``predicting`` are the flat positions ``row * length + t`` whose next token is learnt, and
    ``targets`` those next tokens. ``reading`` and ``read`` are the same for the text that the
    environment writes.
    """

    token_ids: Tensor  # int64[B, L]
    predicting: Tensor  # int64[P]
    targets: Tensor  # int64[P]
    reading: Tensor  # int64[R]
    read: Tensor  # int64[R]
    num_tokens: int  # without padding


def collate(episodes: Sequence[EncodedEpisode], pad_id: int) -> Batch:
    """Pad episodes to one batch."""
    import torch

    length = max(map(len, episodes))
    token_ids = torch.full((len(episodes), length), pad_id, dtype=torch.int64)
    for row, episode in enumerate(episodes):
        token_ids[row, : len(episode)] = torch.tensor(episode.token_ids)
    predicting, targets = _predictions(episodes, [e.trained for e in episodes], length)
    reading, read = _predictions(episodes, [e.read for e in episodes], length)
    return Batch(token_ids, predicting, targets, reading, read, sum(map(len, episodes)))


def _predictions(
    episodes: Sequence[EncodedEpisode], masks: Sequence[Sequence[bool]], length: int
) -> tuple[Tensor, Tensor]:
    """Flat positions before the masked tokens, and those tokens; nothing predicts the first."""
    import torch

    found = [
        (row * length + t - 1, episode.token_ids[t])
        for row, (episode, mask) in enumerate(zip(episodes, masks, strict=True))
        for t in range(1, len(episode))
        if mask[t]
    ]
    positions, tokens = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return positions, tokens


def bucketed(
    episodes: Iterator[EncodedEpisode],
    *,
    tokens_per_batch: int,
    max_length: int,
    pad_id: int,
    rng: random.Random,
) -> Iterator[Batch]:
    """Batches of about ``tokens_per_batch`` padded tokens, similar lengths together, in random
    order. Episodes above ``max_length`` tokens and those with nothing to learn are left out.
    Endless for an endless stream; the tail of a finite one is included."""
    while pool := list(islice(episodes, _POOL)):
        kept = [e for e in pool if len(e) <= max_length and any(e.trained)]
        kept.sort(key=lambda e: len(e) + rng.random())
        groups: list[list[EncodedEpisode]] = []
        for episode in kept:  # ascending: the newest is the longest of its group
            if not groups or len(episode) * (len(groups[-1]) + 1) > tokens_per_batch:
                groups.append([])
            groups[-1].append(episode)
        rng.shuffle(groups)
        for group in groups:
            yield collate(group, pad_id)
