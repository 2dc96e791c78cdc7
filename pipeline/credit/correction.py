"""Off-policy correction: a fixed factor on each token's loss for who sampled it.

The surrogate compares the policy with the PROXIMAL policy (the learner's weights at the start of
the train step); the factor makes up for the proximal policy not being the one that sampled: old
weights (asynchrony), and an engine whose arithmetic differs from the learner's.

Sources: decoupled objective, Hilton et al., arXiv 2110.00641 (for LLMs: AReaL, arXiv 2505.24298);
truncation, Espeholt et al. (IMPALA, arXiv 1802.01561), for the sampler/learner mismatch Yao et al.
(2025); two-sided masks, IcePop (Ling Team, 2025). The ratio a ROUND is this project's: credit is
given to rounds, so a round is the action whose probability matters.

Legend: ``_P`` one value a trained token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.credit.objective import Correction
from pipeline.credit.units import unit_mean, unit_sum

__all__ = ["Factors", "correction_factors"]

_MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: far beyond any bound, and still finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """All detached. ``ratio_P`` is before anything was cut, at the correction's level."""

    factor_P: Tensor
    ratio_P: Tensor
    cut_P: Tensor  # bool: truncated or masked


@torch.no_grad()
def correction_factors(
    proximal_logprobs_P: Tensor,
    sampler_logprobs_P: Tensor,
    round_P: Tensor,
    sequence_P: Tensor,
    correction: Correction,
) -> Factors:
    """``round_P`` and ``sequence_P`` are int64 ids, equal within a round and a trajectory.

    >>> one = torch.zeros(3, dtype=torch.int64)
    >>> log_ratio = torch.log(torch.tensor([2.0, 3.0, 0.5]))
    >>> factors = correction_factors(log_ratio, torch.zeros(3), one, one,
    ...                              Correction(kind="truncated", level="round", high=2.0))
    >>> [round(float(x), 4) for x in factors.ratio_P], factors.factor_P.tolist()
    ([3.0, 3.0, 3.0], [2.0, 2.0, 2.0])
    """
    log_ratio_P = proximal_logprobs_P - sampler_logprobs_P
    if correction.level != "token":
        unit_P = round_P if correction.level == "round" else sequence_P
        over_unit = unit_mean if correction.geometric else unit_sum
        log_ratio_P = over_unit(log_ratio_P, unit_P)
    ratio_P = torch.exp(log_ratio_P.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    match correction.kind:
        case "none":
            factor_P, cut_P = torch.ones_like(ratio_P), torch.zeros_like(ratio_P, dtype=torch.bool)
        case "importance":
            factor_P, cut_P = ratio_P, torch.zeros_like(ratio_P, dtype=torch.bool)
        case "truncated":
            factor_P, cut_P = ratio_P.clamp(max=correction.high), ratio_P > correction.high
        case "masked":
            cut_P = (ratio_P < correction.low) | (ratio_P > correction.high)
            factor_P = torch.where(cut_P, 0.0, ratio_P)
        case _:
            raise ValueError(f"unknown correction {correction.kind!r}")
    return Factors(factor_P=factor_P, ratio_P=ratio_P, cut_P=cut_P)
