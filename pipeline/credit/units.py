"""Sums and means of token values over the unit that a ratio is taken for: round or trajectory.

Legend: ``_P`` one value a trained token; units are named by any integers, equal within a unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unit_mean", "unit_sum"]


def unit_sum(values_P: Tensor, unit_P: Tensor) -> Tensor:
    """float[P]: every token gets the sum over its unit.

    >>> unit_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([7, 7, 3])).tolist()
    [3.0, 3.0, 5.0]
    """
    units, index_P = torch.unique(unit_P, return_inverse=True)
    sums = values_P.new_zeros(len(units)).index_add(0, index_P, values_P)
    return sums[index_P]


def unit_mean(values_P: Tensor, unit_P: Tensor) -> Tensor:
    """float[P]: every token gets the mean over the tokens of its unit."""
    return unit_sum(values_P, unit_P) / unit_sum(torch.ones_like(values_P), unit_P)
