"""Every algorithm of ``conf/algorithm`` on cases computed by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from actors.loss_metrics import LossMetrics, micro_batch_loss
from pipeline.batch import make_rank_batches
from pipeline.config import AlgorithmConfig
from pipeline.config_checks import to_config
from pipeline.credit import build_algorithm
from pipeline.credit.advantage import advantages, group_advantages
from pipeline.credit.contribution import round_weights
from pipeline.credit.process import process_advantages
from pipeline.errors import UserError
from pipeline.overrides import compose_config
from pipeline.types import Status, VerdictNeed
from tests.support.credit_cases import group, trajectory

CONF = Path(__file__).resolve().parents[2] / "conf" / "algorithm"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SQRT3 = math.sqrt(3.0)


def load(name: str, **changes: object) -> AlgorithmConfig:
    """The configuration file with its bases, and changes on top."""
    content = OmegaConf.load(CONF / f"{name}.yaml")
    bases = [b for b in content.pop("defaults", []) if b != "_self_"]
    base = load(bases[0]) if bases else AlgorithmConfig()
    known = {f.name for f in fields(AlgorithmConfig)}
    values = OmegaConf.to_container(content)
    assert values.keys() <= known
    return replace(base, **(values | changes))


def rounds_of(config: AlgorithmConfig, *groups: object) -> list[list[float]]:
    """Round advantages of every trajectory."""
    result = build_algorithm(config).credit(groups)  # type: ignore[arg-type]
    return [c.round_advantages.tolist() for c in result.trajectories]


def won(**kwargs):  # type: ignore[no-untyped-def]
    return trajectory(reward=1.0, **kwargs)


def lost(**kwargs):  # type: ignore[no-untyped-def]
    kwargs.setdefault("sample_id", 1)
    return trajectory(reward=0.0, **kwargs)


# A success with one contributing round of two, and a failure with one; sample deviation of
# rewards 1, 0 is 1/sqrt 2, so the group's advantages are +-0.5 sqrt 2.
MIXED = group(won(verdicts=[(1, 1), (0, 1)]), lost(verdicts=[(1, 1), (1, 0)]))
A = 0.5 / (math.sqrt(0.5) + 1e-6)
SOFT = math.e**2

BY_HAND: dict[str, list[list[float]]] = {
    "cw_grpo": [[2 * A, 0, A], [-A, -A, -A]],
    "cw_grpo_softmax": [[A * 2 * SOFT / (SOFT + 1), A * 2 / (SOFT + 1), A], [-A, -A, -A]],
    "cw_grpo_published": [[2 * A, 0, A], [-A, -A, -A]],
    "grpo": [[A, A, A], [-A, -A, -A]],
    "dr_grpo": [[0.5] * 3, [-0.5] * 3],
    "rloo": [[1.0] * 3, [-1.0] * 3],
    # batch of rewards 1, 0: the same as the group here
    "reinforce_pp": [[A, A, A], [-A, -A, -A]],
    "dapo": [[A, A, A], [-A, -A, -A]],
    # p over the group's four search rounds: 1 0 1 0, mean 1/2, sample deviation 1/sqrt 3
    "process_reward": [
        [A + SQRT3 / 2, A - SQRT3 / 2, A],
        [-A + SQRT3 / 2, -A - SQRT3 / 2, -A],
    ],
    "gspo": [[A, A, A], [-A, -A, -A]],
    "cispo": [[A, A, A], [-A, -A, -A]],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_on_one_mixed_group(name: str) -> None:
    for made, expected in zip(rounds_of(load(name), MIXED), BY_HAND[name], strict=True):
        np.testing.assert_allclose(made, expected, rtol=3e-6, atol=3e-6)


# One group a case, its first trajectory's advantage undivided, less the others' mean, and divided
# by the deviation; then what its rounds weigh (``None``: 1 each), with p the verdicts' products.
R2, E1 = math.sqrt(0.5), math.exp(1)  # E1: exp(2 * 0.5), for p of a half at alpha = 2
CASES: dict[str, tuple[object, float, float, float, dict[str, list[float] | None]]] = {
    "a success in which no round contributed": (
        group(won(verdicts=[(1, 0), (0, 1)]), lost()),
        *(0.5, 1.0, 0.5 / R2),
        {"limit": None, "softmax": None, "published": [0, 0, 1], "process": [0, 0, 0]},
    ),
    "a success with one search round": (
        group(won(verdicts=[(1, 1)]), lost()),
        *(0.5, 1.0, 0.5 / R2),
        {"limit": None, "softmax": None, "published": None, "process": [0, 0]},
    ),
    "a judge that failed on one round": (
        group(won(verdicts=[(1, 1), None]), lost()),
        *(0.5, 1.0, 0.5 / R2),
        {"limit": None, "softmax": None, "published": [2, 0, 1], "process": [0, 0, 0]},
    ),
    "fractional verdicts": (  # p: 1/2, 1/4, 0; their deviation is 1/4
        group(won(verdicts=[(1, 0.5), (0.5, 0.5), (0, 1)]), lost()),
        *(0.5, 1.0, 0.5 / R2),
        {
            "limit": [2, 1, 0, 1],
            "softmax": [
                *(3 * w / (E1 + math.sqrt(E1) + 1) for w in (E1, math.sqrt(E1), 1)),
                1,
            ],
            "published": [2, 1, 0, 1],
            "process": [1, 0, -1, 0],
        },
    ),
    "a short group after failures": (  # rewards 1, 0, 0: sample deviation sqrt(1/3)
        group(won(verdicts=[(1, 1), (0, 1)]), lost(), lost(sample_id=2), errors=["engine died"]),
        *(2 / 3, 1.0, 2 / 3 * SQRT3),
        {
            "limit": [2, 0, 1],
            "softmax": [2 * SOFT / (SOFT + 1), 2 / (SOFT + 1), 1],
            "published": [2, 0, 1],
            "process": [R2, -R2, 0],
        },
    ),
    "a wrong answer that beats silence": (  # rewards 0 and -1/2: no success, nothing is weighted
        group(lost(verdicts=[(1, 1), (0, 0)]), trajectory(reward=-0.5, sample_id=2)),
        *(0.25, 0.5, 0.25 / math.sqrt(0.125)),
        {"limit": None, "softmax": None, "published": None, "process": [R2, -R2, 0]},
    ),
}
WEIGHTS = {
    "cw_grpo": "limit",
    "cw_grpo_softmax": "softmax",
    "cw_grpo_published": "published",
    "process_reward": "process",
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_on_every_case(name: str, case: str) -> None:
    played, centred, beside_others, divided, by_rule = CASES[case]
    scale = {"dr_grpo": centred, "rloo": beside_others}.get(name, divided)
    made = rounds_of(load(name), played)[0]
    moved = by_rule[WEIGHTS[name]] if name in WEIGHTS else None
    if moved is None:
        expected = [scale] * len(made)
    elif name == "process_reward":
        expected = [scale + own for own in moved]
    else:
        expected = [scale * weight for weight in moved]
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


# name: loss, lower and upper clip, aggregation, baseline, scale
OBJECTIVES = {
    "cw_grpo": ("ppo_clip", 0.2, 0.2, "token_mean", "group", "group_std"),
    "cw_grpo_softmax": ("ppo_clip", 0.2, 0.2, "token_mean", "group", "group_std"),
    "cw_grpo_published": ("ppo_clip", 0.2, 0.2, "token_mean", "group", "group_std"),
    "grpo": ("ppo_clip", 0.2, 0.2, "token_mean", "group", "group_std"),
    "dr_grpo": ("ppo_clip", 0.2, 0.2, "constant", "group", "none"),
    "rloo": ("ppo_clip", 0.2, 0.2, "token_mean", "leave_one_out", "none"),
    "reinforce_pp": ("ppo_clip", 0.2, 0.2, "token_mean", "none", "batch"),
    "dapo": ("ppo_clip", 0.2, 0.28, "token_mean", "group", "group_std"),
    "process_reward": ("ppo_clip", 0.2, 0.2, "token_mean", "group", "group_std"),
    "gspo": ("gspo", 3e-4, 4e-4, "sequence_mean", "group", "group_std"),
    "cispo": ("cispo", 1.0, 0.28, "token_mean", "group", "group_std"),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_sets_the_objective_of_its_paper(name: str) -> None:
    config = load(name)
    objective = build_algorithm(config).objective
    assert (
        *(objective.loss, objective.clip_low, objective.clip_high),
        *(config.aggregation, config.baseline, config.scale),
    ) == OBJECTIVES[name]


def test_reinforce_pp_compares_with_the_batch_and_not_with_the_group() -> None:
    # rewards 1 1 | 1 0: mean 3/4, sample deviation 1/2
    solved = group(won(), won(sample_id=1))
    made = rounds_of(load("reinforce_pp"), solved, group(won(group_id=1), lost(group_id=1)))
    np.testing.assert_allclose([r[0] for r in made], [0.5, 0.5, 0.5, -1.5], rtol=3e-6)


def test_dapo_takes_reward_off_a_long_trajectory() -> None:
    # 224 tokens: half of the margin of 64 before 256, so reward 0.5; deviation of 1, 0.5, 0: 0.5
    long = won(tokens=[224], sample_id=2)
    made = rounds_of(load("dapo"), group(won(), lost(), long))
    np.testing.assert_allclose([r[0] for r in made], [1.0, -1.0, 0.0], rtol=3e-6, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_names_itself_and_builds(name: str) -> None:
    assert load(name).name == name
    assert build_algorithm(load(name)).objective.clip_high >= 0


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"reinforce_pp"}))
def test_a_group_of_equal_rewards_trains_nothing(name: str) -> None:
    solved = group(won(verdicts=[(1, 1)]), won(verdicts=[(1, 0)], sample_id=1))
    algorithm = build_algorithm(load(name))
    assert not algorithm.has_signal(solved)
    assert algorithm.to_judge(solved) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_success_without_search_rounds_has_the_answers_advantage_alone(name: str) -> None:
    (own, other) = rounds_of(load(name), group(won(), lost()))
    assert len(own) == len(other) == 1
    assert own[0] == pytest.approx(-other[0])


def test_alpha_zero_of_the_file_is_grpo_bit_for_bit_in_loss_and_gradient() -> None:
    groups = [
        group(
            won(verdicts=[(1, 1), (0, 1), (0.3, 0.7)], group_id=g),
            won(verdicts=[(0, 0), None], group_id=g, sample_id=1),
            lost(verdicts=[(1, 1)], group_id=g, sample_id=2),
        )
        for g in range(3)
    ]
    made = []
    for config in (load("cw_grpo", alpha=0.0), load("grpo")):
        algorithm = build_algorithm(config)
        result = algorithm.credit(groups)
        samples = list(result.samples)
        (micro,) = make_rank_batches(samples, result.normaliser, 1, 10_000)[0].micro_batches
        moved_P = 0.3 * torch.sin(torch.arange(micro.num_trained))  # some ratios are clipped
        logprobs_P = (torch.from_numpy(micro.sampler_logprobs_P) + moved_P).requires_grad_()
        loss = micro_batch_loss(
            *(micro, logprobs_P, torch.zeros_like(moved_P), algorithm.objective),
            *(result.normaliser, LossMetrics()),
        )
        loss.backward()
        advantages = b"".join(s.advantages.tobytes() for s in samples)
        made.append(
            (advantages, loss.detach().numpy().tobytes(), logprobs_P.grad.numpy().tobytes())
        )
    assert made[0] == made[1]
    assert np.frombuffer(made[0][2], np.float32).any()


def test_a_key_that_the_credit_does_not_read_is_refused() -> None:
    for name, changes in (
        ("grpo", {"alpha": 2.0}),
        ("dapo", {"signal": "utility"}),
        ("gspo", {"failures": "blame"}),
        ("process_reward", {"alpha": 2.0}),
    ):
        (key,) = changes
        with pytest.raises(UserError, match=rf"algorithm\.{key}=.* has no effect with .*credit="):
            build_algorithm(load(name, **changes))
    # with verdicts every one of them is a weighted algorithm, at its limit
    for name in ("dapo", "gspo", "dr_grpo", "rloo"):
        weighted = build_algorithm(load(name, credit="contribution"))
        assert weighted.verdict_need is VerdictNeed.WINNERS


@pytest.mark.parametrize("value", [0.1, math.nan, -math.inf])
def test_silence_never_pays_and_costs_something_finite(value: float) -> None:
    with pytest.raises(
        UserError, match=r"algorithm\.no_answer_reward=.* must be 0 or less, and finite"
    ):
        build_algorithm(AlgorithmConfig(no_answer_reward=value))


@pytest.mark.parametrize(
    ("name", "need"),
    [
        ("cw_grpo", VerdictNeed.WINNERS),
        ("cw_grpo_published", VerdictNeed.WINNERS),
        ("grpo", VerdictNeed.NONE),
        ("process_reward", VerdictNeed.MIXED_GROUPS),
        ("reinforce_pp", VerdictNeed.NONE),
    ],
)
def test_an_algorithm_declares_the_verdicts_it_needs(name: str, need: VerdictNeed) -> None:
    algorithm = build_algorithm(load(name))
    assert algorithm.verdict_need is need
    judged = {VerdictNeed.NONE: [], VerdictNeed.WINNERS: [0], VerdictNeed.MIXED_GROUPS: [0, 1]}
    assert algorithm.to_judge(MIXED) == judged[need]


def test_the_published_script_takes_a_failed_verdict_and_no_contribution_as_nothing() -> None:
    failed = group(won(verdicts=[(1, 1), None]), lost())
    nothing = group(won(verdicts=[(1, 0), (0, 1)]), lost())
    published = load("cw_grpo_published", scale="none")
    assert rounds_of(published, failed)[0] == [1.0, 0.0, 0.5]
    assert rounds_of(published, nothing)[0] == [0.0, 0.0, 0.5]


def test_a_short_group_is_compared_with_its_survivors_leave_one_out() -> None:
    short = group(won(), lost(), lost(sample_id=2), errors=["engine died"])
    assert rounds_of(load("rloo"), short) == [[1.0], [-0.5], [-0.5]]


def test_batch_scaling_compares_over_groups() -> None:
    # rewards 1 0 | 0 0: mean 1/4, sample deviation 1/2
    made = advantages([np.array([1.0, 0.0]), np.array([0.0, 0.0])], baseline="none", scale="batch")
    np.testing.assert_allclose(np.concatenate(made), [1.5, -0.5, -0.5, -0.5], rtol=3e-6)


def test_batch_scaling_after_a_group_baseline() -> None:
    # centred: 1/2 -1/2 | 0 0; mean 0, sample deviation sqrt(1/6)
    made = advantages([np.array([1.0, 0.0]), np.array([0.0, 0.0])], scale="batch")
    expected = 0.5 / math.sqrt(1 / 6)
    np.testing.assert_allclose(np.concatenate(made), [expected, -expected, 0, 0], rtol=3e-6)


def test_with_batch_scaling_every_correct_trajectory_is_judged() -> None:
    config = AlgorithmConfig(scale="batch")
    solved = [won(verdicts=[None]), won(verdicts=[None], sample_id=2), lost(verdicts=[None])]
    assert build_algorithm(config).to_judge(group(*solved)) == [0, 1]


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ("joint", [1.5, 0, 0, 0.5]),
        ("utility", [0.75, 0.75, 0, 0.5]),
        ("correctness", [0.75, 0, 0.75, 0.5]),
    ],
)
def test_one_signal_alone(signal: str, expected: list[float]) -> None:
    config = AlgorithmConfig(scale="none", signal=signal)
    searched = group(won(verdicts=[(1, 1), (1, 0), (0, 1)]), lost())
    np.testing.assert_allclose(rounds_of(config, searched)[0], expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("uniform", [-0.5, -0.5, -0.5]), ("same", [-1.0, 0, -0.5]), ("blame", [0, -1.0, -0.5])],
)
def test_failures_may_be_attributed_too(rule: str, expected: list[float]) -> None:
    config = AlgorithmConfig(scale="none", failures=rule)
    failure = group(won(), lost(verdicts=[(1, 1), (0, 1)]))
    assert rounds_of(config, failure)[1] == expected
    judged = build_algorithm(config).to_judge(failure)
    assert judged == ([] if rule == "uniform" else [1])


def test_a_failure_with_a_failed_verdict_stays_uniform() -> None:
    config = AlgorithmConfig(scale="none", failures="blame")
    assert rounds_of(config, group(won(), lost(verdicts=[(1, 1), None])))[1] == [-0.5] * 3


def test_blame_counts_a_failed_verdict_as_no_contribution_where_that_is_the_rule() -> None:
    p_S = np.array([1.0, math.nan])
    rules = {"failures": "blame", "failed_verdict": "zero"}
    blamed = round_weights(p_S, success=False, alpha=math.inf, **rules)  # type: ignore[arg-type]
    assert blamed.tolist() == [0.0, 2.0]


def test_missing_verdicts_are_counted_wherever_they_were_needed() -> None:
    failure = group(won(), lost(verdicts=[None, (1, 1)]))
    for config, missing in (
        (AlgorithmConfig(failures="blame"), 1.0),
        (load("process_reward"), 1.0),
        (AlgorithmConfig(), 0.0),  # nobody asked for a failure's verdicts
    ):
        metrics = build_algorithm(config).credit([failure]).metrics
        assert metrics["verdict_failures"] == missing
    assert "verdict_failures" not in build_algorithm(load("grpo")).credit([failure]).metrics


def test_concentration_is_of_the_contributions_whatever_alpha_makes_of_them() -> None:
    searched = group(won(verdicts=[(1, 1), (1, 1), (0, 1), (1, 0)]), lost())
    nothing = group(won(verdicts=[(0, 1), (1, 0)], group_id=1), lost(group_id=1))
    for name in ("cw_grpo", "cw_grpo_softmax", "cw_grpo_published", "process_reward"):
        metrics = build_algorithm(load(name)).credit([searched, nothing]).metrics
        assert metrics["contribution_concentration"] == 0.5


def test_a_process_reward_misses_no_trajectory_whose_judge_failed() -> None:
    config = load("process_reward", scale="none")
    made = rounds_of(config, group(won(verdicts=[(1, 1), None]), lost(verdicts=[(1, 1), (0, 0)])))
    assert made == [[0.5, 0.5, 0.5], [0.0, -1.0, -0.5]]
    as_zero = rounds_of(
        replace(config, failed_verdict="zero"),
        group(won(verdicts=[(1, 1), None]), lost(verdicts=[(1, 1), (0, 0)])),
    )
    assert as_zero == [[1.0, 0.0, 0.5], [0.0, -1.0, -0.5]]


def test_process_rewards_of_equal_rounds_add_nothing() -> None:
    made = process_advantages([np.ones(2), np.ones(1)], norm_by_std=True, failed_as_zero=False)
    assert [a.tolist() for a in made] == [[0.0, 0.0], [0.0]]


def test_a_long_trajectory_loses_reward_and_stays_a_success_or_not() -> None:
    # 20 policy tokens: half of the margin, so -0.5; the short one is right without penalty
    config = AlgorithmConfig(scale="none", credit="uniform", overlong_limit=25, overlong_margin=10)
    long, short = won(tokens=[20]), won(tokens=[10], sample_id=1)
    wrong = lost(tokens=[30], sample_id=2)
    advantage = [r[-1] for r in rounds_of(config, group(long, short, wrong))]
    # rewards 0.5, 1, -1: mean 1/6
    np.testing.assert_allclose(advantage, [1 / 3, 5 / 6, -7 / 6], rtol=1e-12)


def test_shaping_never_makes_a_wrong_answer_a_success() -> None:
    # a short wrong answer beats a long wrong one, and is still a failure: no weights
    config = AlgorithmConfig(scale="none", overlong_limit=10, overlong_margin=0)
    short = lost(tokens=[1, 1], verdicts=[(1, 1)], sample_id=0)
    long = lost(tokens=[9, 9], verdicts=[(0, 0)])
    result = build_algorithm(config).credit([group(short, long)])
    assert result.trajectories[0].advantage == 0.5
    assert not result.trajectories[0].success
    assert result.trajectories[0].round_advantages.tolist() == [0.5, 0.5]


def test_kl_in_the_reward_is_taken_off_before_the_baseline() -> None:
    config = AlgorithmConfig(
        credit="uniform", scale="none", kl_coef=0.1, kl_in="reward", kl_estimator="k1"
    )
    both = group(won(tokens=[2]), lost(tokens=[3]))
    algorithm = build_algorithm(config)
    asked = algorithm.reference_samples([both])
    # the reference finds every token 1 nat less likely than the sampler did
    less = [s.sampler_logprobs - np.float32(1.0) for s in asked]
    made = algorithm.credit([both], less).trajectories
    # rewards 1 - 0.2 and 0 - 0.3
    assert made[0].advantage == pytest.approx(0.55, rel=1e-6)
    assert all(s.ref_logprobs is None for s in algorithm.credit([both], less).samples)
    with pytest.raises(ValueError, match="needs reference log-probabilities"):
        algorithm.credit([both])


def test_finite_alpha_tends_to_the_limit_for_binary_verdicts() -> None:
    p_S = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    limit = round_weights(p_S, success=True, alpha=math.inf)
    gaps = [np.abs(round_weights(p_S, success=True, alpha=a) - limit).max() for a in (1, 5, 20, 60)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-12


@given(
    p=st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, math.inf]),
    success=st.booleans(),
    failures=st.sampled_from(["uniform", "same", "blame"]),
)
def test_the_mean_over_rounds_is_conserved(
    p: list[float], alpha: float, success: bool, failures: str
) -> None:
    weights = round_weights(
        np.array(p),
        success=success,
        failures=failures,
        alpha=alpha,  # type: ignore[arg-type]
    )
    assert (weights >= 0).all()
    assert weights.mean() == pytest.approx(1.0, rel=1e-9)


@given(
    rewards=st.lists(st.sampled_from([0.0, 1.0, 0.25, -0.5]), min_size=2, max_size=16),
    baseline=st.sampled_from(["group", "leave_one_out"]),
)
def test_advantages_with_a_baseline_sum_to_zero(rewards: list[float], baseline: str) -> None:
    made = group_advantages(np.array(rewards), baseline=baseline, scale="none")  # type: ignore[arg-type]
    assert made.sum() == pytest.approx(0.0, abs=1e-9)


def test_a_deviation_of_the_group_needs_its_mean() -> None:
    with pytest.raises(UserError, match=r"algorithm\.scale=group_std .*baseline=group"):
        build_algorithm(AlgorithmConfig(baseline="none"))


def test_silence_that_costs_is_no_success() -> None:
    silent = trajectory(reward=-0.5, status=Status.NO_ACTION, sample_id=1)
    assert build_algorithm(load("cw_grpo")).to_judge(group(won(), silent)) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.signal=utility"],
        ["algorithm.failures=blame"],
        *([f"algorithm.alpha={alpha}"] for alpha in ("0", "0.5", "1", "2", "5", "inf")),
        ["algorithm=gspo", "algorithm.credit=contribution"],
        ["algorithm=dapo", "algorithm.credit=contribution", "algorithm.alpha=2"],
    ],
)
def test_the_documented_overrides_compose(overrides: list[str]) -> None:
    config = to_config(compose_config(["experiment=cpu_default", *overrides])).algorithm
    assert build_algorithm(config).objective
    page = (CONF.parents[1] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    for override in overrides:
        key, _, value = override.partition("=")
        assert key in page and value in page
