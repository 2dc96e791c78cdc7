"""From groups to samples: every case of method.md, with numbers computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import AlgorithmConfig
from pipeline.credit import build_algorithm
from pipeline.errors import UserError
from pipeline.types import Status, VerdictNeed
from tests.support.credit_cases import group, trajectory

CENTRED = AlgorithmConfig(scale="none")  # advantages of a won and a lost one: +-0.5


def credit(config: AlgorithmConfig, *groups):  # type: ignore[no-untyped-def]
    return build_algorithm(config).credit(groups)


def won(**kwargs):  # type: ignore[no-untyped-def]
    return trajectory(reward=1.0, **kwargs)


def lost(**kwargs):  # type: ignore[no-untyped-def]
    kwargs.setdefault("sample_id", 1)
    return trajectory(reward=0.0, **kwargs)


def test_a_success_gives_its_credit_to_the_round_that_contributed() -> None:
    result = credit(CENTRED, group(won(verdicts=[(1, 1), (1, 0), (0, 1)]), lost()))
    success = result.trajectories[0]
    assert success.contributions.tolist() == [1.0, 0.0, 0.0]
    assert success.weights.tolist() == [3.0, 0.0, 0.0]
    assert success.round_advantages.tolist() == [1.5, 0.0, 0.0, 0.5]


def test_every_token_carries_its_rounds_advantage_and_context_carries_none() -> None:
    result = credit(CENTRED, group(won(verdicts=[(1, 1), (0, 0)], tokens=[2, 1, 3]), lost()))
    sample = result.samples[0]
    c = [0.0] * 3
    assert sample.advantages.tolist() == [*c, 1.0, 1.0, *c, 0.0, *c, 0.5, 0.5, 0.5]
    assert sample.round_ids.tolist() == [-1] * 3 + [0, 0] + [-1] * 3 + [1] + [-1] * 3 + [2] * 3
    assert sample.loss_mask.tolist() == [r >= 0 for r in sample.round_ids]
    assert sample.versions.tolist() == [-1 if r < 0 else 0 for r in sample.round_ids]
    assert (sample.sampler_logprobs[sample.loss_mask] < 0).all()
    assert not sample.sampler_logprobs[~sample.loss_mask].any()


def test_failures_are_uniform_even_where_a_round_contributed() -> None:
    result = credit(CENTRED, group(won(), lost(verdicts=[(1, 1), (0, 0)])))
    assert result.trajectories[1].round_advantages.tolist() == [-0.5, -0.5, -0.5]


def test_a_success_without_a_contributing_round_is_uniform_by_default() -> None:
    result = credit(CENTRED, group(won(verdicts=[(1, 0), (0, 1)]), lost()))
    assert result.trajectories[0].round_advantages.tolist() == [0.5, 0.5, 0.5]
    assert result.metrics["no_contribution_share"] == 1.0


def test_the_published_rule_leaves_only_its_answer_round() -> None:
    config = replace(CENTRED, no_contribution="zero")
    result = credit(config, group(won(verdicts=[(1, 0), (0, 1)]), lost()))
    assert result.trajectories[0].round_advantages.tolist() == [0.0, 0.0, 0.5]


def test_a_success_that_never_searched_keeps_its_advantage() -> None:
    result = credit(CENTRED, group(won(), lost()))
    assert result.trajectories[0].round_advantages.tolist() == [0.5]
    assert "no_contribution_share" not in result.metrics  # nothing to take it over


def test_a_success_with_one_search_round_keeps_its_advantage() -> None:
    result = credit(CENTRED, group(won(verdicts=[(1, 1)]), lost()))
    assert result.trajectories[0].round_advantages.tolist() == [0.5, 0.5]


def test_fractional_verdicts_share_in_proportion() -> None:
    # p = 0.5 * 0.5 and 0.75: shares 1/4 and 3/4 of two rounds
    result = credit(CENTRED, group(won(verdicts=[(0.5, 0.5), (0.75, 1.0)]), lost()))
    assert result.trajectories[0].round_advantages.tolist() == [0.25, 0.75, 0.5]


def test_a_failed_verdict_keeps_uniform_weights_and_is_counted() -> None:
    result = credit(CENTRED, group(won(verdicts=[(1, 1), None]), lost()))
    assert result.trajectories[0].round_advantages.tolist() == [0.5, 0.5, 0.5]
    assert math.isnan(result.trajectories[0].contributions[1])
    assert result.metrics["verdict_failures"] == 1.0
    assert result.metrics["failed_verdict_share"] == 1.0


def test_a_failed_verdict_can_count_as_no_contribution() -> None:
    config = replace(CENTRED, failed_verdict="zero")
    result = credit(config, group(won(verdicts=[(1, 1), None]), lost()))
    assert result.trajectories[0].round_advantages.tolist() == [1.0, 0.0, 0.5]


def test_a_wrong_answer_with_a_shaped_positive_advantage_is_no_success() -> None:
    shaped = trajectory(reward=0.5, verdicts=[(1, 1), (0, 0)])
    silent = trajectory(reward=-0.5, status=Status.NO_ACTION, sample_id=1)
    algorithm = build_algorithm(CENTRED)
    result = algorithm.credit([group(shaped, silent)])
    assert algorithm.to_judge(group(shaped, silent)) == []
    assert result.trajectories[0].round_advantages.tolist() == [0.5, 0.5, 0.5]
    assert not result.trajectories[0].success


def test_equal_rewards_train_nothing_and_need_no_judge() -> None:
    algorithm = build_algorithm(CENTRED)
    solved = group(won(verdicts=[(1, 1)]), won(verdicts=[(1, 1)], sample_id=1))
    assert algorithm.to_judge(solved) == []
    assert list(algorithm.credit([solved]).samples) == []


def test_a_short_group_is_compared_among_its_survivors() -> None:
    short = group(won(), lost(), lost(sample_id=2), errors=["engine died"])
    advantages = [t.advantage for t in credit(CENTRED, short).trajectories]
    np.testing.assert_allclose(advantages, [2 / 3, -1 / 3, -1 / 3], rtol=1e-15)


def test_only_successes_that_searched_are_judged() -> None:
    mixed = group(won(), won(verdicts=[None], sample_id=1), lost(verdicts=[None], sample_id=2))
    assert build_algorithm(CENTRED).to_judge(mixed) == [1]
    assert build_algorithm(CENTRED).verdict_need is VerdictNeed.WINNERS


@pytest.mark.parametrize("config", [AlgorithmConfig(credit="uniform"), AlgorithmConfig(alpha=0.0)])
def test_grpo_needs_no_judge(config: AlgorithmConfig) -> None:
    algorithm = build_algorithm(config)
    assert algorithm.verdict_need is VerdictNeed.NONE
    assert algorithm.to_judge(group(won(verdicts=[None]), lost())) == []


def test_the_token_mean_counts_trajectories_that_are_not_sent() -> None:
    # rewards 0, 0.5, 1: the middle one has advantage 0 and 5 tokens
    middle = trajectory(reward=0.5, tokens=[5], sample_id=1)
    result = credit(CENTRED, group(won(tokens=[4]), middle, lost(tokens=[3], sample_id=2)))
    assert [s.sample_id for s in result.samples] == [0, 2]
    assert result.normaliser == 12.0
    assert result.samples[0].loss_weights.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_with_a_kl_term_no_trajectory_is_left_out() -> None:
    middle = trajectory(reward=0.5, sample_id=1)
    config = replace(CENTRED, kl_coef=0.1)
    assert len(credit(config, group(won(), middle, lost(sample_id=2))).samples) == 3


def test_the_sequence_mean_weighs_every_trajectory_equally() -> None:
    config = replace(CENTRED, aggregation="sequence_mean")
    result = credit(config, group(won(tokens=[4]), lost(tokens=[2])))
    assert result.normaliser == 2.0
    assert [float(s.loss_weights.sum()) for s in result.samples] == [1.0, 1.0]


def test_the_constant_is_the_same_length_for_every_trajectory() -> None:
    config = replace(CENTRED, aggregation="constant", constant_normaliser=100.0)
    result = credit(config, group(won(tokens=[4]), lost(tokens=[2])))
    assert result.normaliser == 200.0
    assert result.samples[0].loss_weights.max() == 1.0


def test_metrics_tell_where_credit_went() -> None:
    # credit of the success: 4 tokens x 1.0 + 2 x 0.0 + 3 x 0.5; of the failure: 2 x -0.5
    result = credit(CENTRED, group(won(verdicts=[(1, 1), (0, 0)], tokens=[4, 2, 3]), lost()))
    assert result.metrics["token_summed_credit"] == pytest.approx((5.5 - 1.0) / 2)
    assert result.metrics["token_summed_credit_successes"] == pytest.approx(5.5)
    assert result.metrics["contribution_concentration"] == 1.0
    assert result.metrics["contributing_rounds_share"] == 0.5
    assert result.metrics["success_share"] == 0.5
    assert result.metrics["verdict_failures"] == 0.0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"credit": "magic"}, "credit"),
        ({"no_contribution": "half"}, "no_contribution"),
        ({"aggregation": "constant"}, "constant_normaliser"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"kl_coef": -0.1}, "kl_coef"),
    ],
)
def test_a_value_it_cannot_take_is_refused_by_name(changes: dict, key: str) -> None:
    with pytest.raises(UserError, match=f"algorithm.{key}="):
        build_algorithm(AlgorithmConfig(**changes))
