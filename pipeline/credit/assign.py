"""From a trajectory and its round advantages to the flat sample that the learner sees.

Legend: ``_T`` one value a round; ``_L`` one value a token (context and sampled).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.types import Round, Sample, Trajectory

__all__ = ["make_sample", "round_advantages"]


def round_advantages(
    advantage: float, weights_S: np.ndarray, own_S: np.ndarray | None = None
) -> np.ndarray:
    """float64[T]: ``A w_t`` (plus the round's own advantage, if there is one) for each search
    round, ``A`` for the answer round.

    >>> round_advantages(0.5, np.array([2.0, 0.0])).tolist()
    [1.0, 0.0, 0.5]
    """
    search_S = advantage * weights_S
    return np.append(search_S if own_S is None else search_S + own_S, advantage)


def make_sample(
    trajectory: Trajectory, round_advantages_T: np.ndarray, token_weight: float
) -> Sample:
    """Spread one advantage a round over the tokens that the policy sampled in it.

    ``token_weight`` is the aggregation's weight of every trained token of this trajectory.
    Context tokens (question, template, passages) get mask False and zeros everywhere.
    """
    rounds = trajectory.rounds
    if len(round_advantages_T) != len(rounds):
        raise ValueError(f"{len(round_advantages_T)} advantages for {len(rounds)} rounds")
    mask_L = _flat(rounds, lambda t, r: np.ones(len(r.token_ids), np.bool_), False, np.bool_)
    return Sample(
        token_ids=trajectory.flat_token_ids().astype(np.int32, copy=False),
        loss_mask=mask_L,
        round_ids=_flat(rounds, lambda t, r: np.full(len(r.token_ids), t), -1, np.int16),
        sampler_logprobs=_flat(rounds, lambda t, r: r.logprobs, 0.0, np.float32),
        advantages=_flat(
            rounds,
            lambda t, r: np.full(len(r.token_ids), round_advantages_T[t]),
            0.0,
            np.float32,
        ),
        loss_weights=np.where(mask_L, token_weight, 0.0).astype(np.float32),
        versions=_flat(rounds, lambda t, r: r.versions, -1, np.int32),
        group_id=trajectory.group_id,
        sample_id=trajectory.sample_id,
    )


def _flat(
    rounds: tuple[Round, ...],
    sampled: Callable[[int, Round], np.ndarray],
    context: float,
    dtype: type[np.generic],
) -> np.ndarray:
    """[L]: ``sampled(t, round)`` on the tokens of round ``t``, ``context`` on its context."""
    parts: list[np.ndarray] = []
    for t, r in enumerate(rounds):
        parts.append(np.full(len(r.context_ids), context, dtype))
        parts.append(np.asarray(sampled(t, r)).astype(dtype))
    return np.concatenate(parts)
