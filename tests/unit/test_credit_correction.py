"""Off-policy factors by hand, and what is measured of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.config import CorrectionConfig
from pipeline.credit import Correction
from pipeline.credit.correction import Factors, correction_factors
from pipeline.credit.off_policy import effective_sample_size, off_policy_metrics
from pipeline.credit.validate import check_correction
from pipeline.errors import UserError

# Two trajectories: rounds A (2 tokens) and B (1) of the first, round C (2) of the second.
RATIOS = [2.0, 3.0, 0.25, 0.5, 0.5]
ROUNDS = torch.tensor([10, 10, 11, 20, 20])
SEQUENCES = torch.tensor([0, 0, 0, 1, 1])


def factors(**options: object) -> Factors:
    log_ratio = torch.tensor(RATIOS, dtype=torch.float64).log()
    return correction_factors(
        log_ratio - 1.0, torch.full((5,), -1.0), ROUNDS, SEQUENCES, Correction(**options)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "none"}, [1, 1, 1, 1, 1]),
        ({"kind": "importance"}, RATIOS),
        ({"kind": "truncated", "high": 2.5}, [2.0, 2.5, 0.25, 0.5, 0.5]),
        ({"kind": "masked", "low": 0.4, "high": 2.5}, [2.0, 0, 0, 0.5, 0.5]),
        # products: A 6, B 0.25, C 0.25
        ({"kind": "importance", "level": "round"}, [6, 6, 0.25, 0.25, 0.25]),
        ({"kind": "truncated", "level": "round", "high": 2.0}, [2, 2, 0.25, 0.25, 0.25]),
        ({"kind": "masked", "level": "round", "low": 0.2, "high": 2.0}, [0, 0, 0.25, 0.25, 0.25]),
        # products: 1.5 and 0.25
        ({"kind": "importance", "level": "sequence"}, [1.5, 1.5, 1.5, 0.25, 0.25]),
        ({"kind": "masked", "level": "sequence", "low": 0.5}, [1.5, 1.5, 1.5, 0, 0]),
        # geometric means: sqrt(6), 0.25, 0.5
        (
            {"kind": "importance", "level": "round", "geometric": True},
            [math.sqrt(6), math.sqrt(6), 0.25, 0.5, 0.5],
        ),
    ],
)
def test_every_kind_at_every_level(options: dict, expected: list[float]) -> None:
    made = factors(**options).factor_P
    torch.testing.assert_close(made, torch.tensor(expected, dtype=made.dtype))


def test_what_was_cut_is_marked_and_the_ratio_kept() -> None:
    made = factors(kind="truncated", level="round", high=2.0)
    assert made.cut_P.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(made.ratio_P[0], torch.tensor(6.0, dtype=made.ratio_P.dtype))


def test_a_factor_has_no_gradient_and_stays_finite() -> None:
    logprobs = torch.tensor([500.0], requires_grad=True)
    one = torch.zeros(1, dtype=torch.int64)
    made = correction_factors(logprobs, torch.zeros(1), one, one, Correction(kind="importance"))
    assert not made.factor_P.requires_grad
    assert torch.isfinite(made.factor_P).all()


def test_effective_sample_size_of_unequal_weights() -> None:
    # (1 + 3)^2 / (2 (1 + 9)) = 0.8
    assert effective_sample_size(np.array([1.0, 3.0])) == pytest.approx(0.8)


def test_metrics_are_told_over_all_and_by_staleness() -> None:
    made = off_policy_metrics(
        sampler_ratio_P=np.array([1.0, 1.0, 2.0]),
        level_ratio_P=np.array([1.0, 1.0, 3.0]),
        factor_P=np.array([1.0, 1.0, 2.0]),
        cut_P=np.array([False, False, True]),
        clipped_P=np.array([True, False, True]),
        staleness_P=np.array([0, 1, 1]),
    )
    assert made["correction_cut_fraction"] == pytest.approx(1 / 3)
    assert made["correction_factor_mean"] == pytest.approx(4 / 3)
    assert made["sampler_ratio_p50"] == 1.0
    assert made["effective_sample_size"] == pytest.approx(25 / 33)
    assert made["effective_sample_size_stale_0"] == 1.0
    assert made["effective_sample_size_stale_1"] == pytest.approx(0.8)
    assert made["correction_cut_fraction_stale_1"] == 0.5
    assert made["clip_fraction"] == pytest.approx(2 / 3)
    assert (made["clip_fraction_stale_0"], made["clip_fraction_stale_1"]) == (1.0, 0.5)
    assert made["level_ratio_p50"] == 1.0
    assert made["level_ratio_p50_stale_1"] == 2.0
    assert not any(name.endswith("_stale_2") for name in made)
    assert off_policy_metrics(*[np.zeros(0)] * 6) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, r"correction\.kind='magic' is unknown"),
        ({"level": "word"}, r"correction\.level='word' is unknown"),
        ({"kind": "truncated"}, r"needs correction\.proximal=recomputed"),
        (
            {"kind": "masked", "proximal": "recomputed", "low": 3.0},
            r"correction\.low=3\.0 and correction\.high=2\.0",
        ),
    ],
)
def test_a_correction_that_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_correction(CorrectionConfig(**options))
