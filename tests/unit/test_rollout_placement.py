"""The placement plan: pure arithmetic, no Ray and no GPU."""

from __future__ import annotations

import pytest

from actors.placement import PlacementPlan, plan_placement
from pipeline.config import LearnerConfig, RetrieverConfig, RolloutConfig
from pipeline.errors import UserError
from pipeline.judging.config import JudgeConfig


def plan(
    *,
    engines: int = 1,
    engine_gpus: float = 0,
    ranks: int = 1,
    rank_gpus: float = 0,
    engine_threads: int = 1,
    **retriever: float,
) -> PlacementPlan:
    return plan_placement(
        RolloutConfig(num_actors=engines, num_gpus=engine_gpus, threads=engine_threads),
        RetrieverConfig(**retriever),
        JudgeConfig(),
        LearnerConfig(num_actors=ranks, num_gpus=rank_gpus),
    )


def resources(plan: PlacementPlan) -> list[dict[str, float]]:
    return [bundle.resources() for bundle in plan.bundles]


def test_the_default_run_fits_on_two_cores() -> None:
    default = plan()
    assert resources(default) == [{"CPU": 1}, {"CPU": 1}]
    assert default.transport == "object_store"
    default.check({"CPU": 2})


def test_retriever_and_judge_on_the_cpu_reserve_nothing() -> None:
    default = plan(num_actors=3)
    assert default.bundle_of("retriever", 2) is None
    assert default.bundle_of("judge", 0) is None
    assert [a.pool for a in default.actors].count("retriever") == 3


def test_engine_and_learner_share_one_gpu_and_talk_by_cuda_ipc() -> None:
    shared = plan(engine_gpus=0.45, rank_gpus=0.45)
    assert resources(shared) == [{"CPU": 2, "GPU": 1}]
    assert shared.bundle_of("rollout", 0) == shared.bundle_of("learner", 0) == 0
    assert shared.transport == "cuda_ipc"


def test_two_pairs_on_two_gpus_pair_by_index() -> None:
    shared = plan(engines=2, engine_gpus=0.5, ranks=2, rank_gpus=0.5)
    assert resources(shared) == [{"CPU": 2, "GPU": 1}, {"CPU": 2, "GPU": 1}]
    for index in (0, 1):
        assert shared.bundle_of("rollout", index) == shared.bundle_of("learner", index) == index
    assert shared.transport == "cuda_ipc"


def test_whole_gpus_are_apart_and_talk_by_nccl() -> None:
    apart = plan(engines=4, engine_gpus=1, ranks=4, rank_gpus=1)
    assert apart.num_gpus == 8
    assert len(apart.bundles) == 8
    assert apart.transport == "nccl"


def test_an_engine_without_a_learner_beside_it_makes_it_nccl() -> None:
    mixed = plan(engines=2, engine_gpus=0.6, ranks=1, rank_gpus=0.4)
    assert mixed.bundle_of("rollout", 0) == mixed.bundle_of("learner", 0)
    assert mixed.transport == "nccl"


def test_fractions_that_do_not_fit_together_take_two_gpus() -> None:
    apart = plan(engine_gpus=0.6, rank_gpus=0.6)
    assert apart.num_gpus == 2
    assert apart.transport == "nccl"


def test_three_tenths_and_seven_tenths_fill_a_gpu_in_spite_of_rounding() -> None:
    assert plan(engine_gpus=0.3, rank_gpus=0.7).num_gpus == 1


def test_a_retriever_with_a_gpu_share_joins_the_pair() -> None:
    three = plan(engine_gpus=0.45, rank_gpus=0.45, num_gpus=0.1)
    assert resources(three) == [{"CPU": 3, "GPU": 1}]


def test_an_evaluation_without_a_learner_reserves_engines_only() -> None:
    evaluation = plan(ranks=0)
    assert resources(evaluation) == [{"CPU": 1}]


def test_an_http_retriever_places_no_actor_with_an_index() -> None:
    assert not any(a.pool == "retriever" for a in plan(url="http://127.0.0.1:1").actors)


def test_too_few_cpus_are_refused_with_what_is_asked_and_what_is_there() -> None:
    with pytest.raises(UserError) as refusal:
        plan(engines=2, engine_threads=2).check({"CPU": 2})
    message = str(refusal.value)
    assert "asks for 5 CPUs" in message
    assert "2 x rollout of 2 CPU" in message
    assert "1 x learner of 1 CPU" in message
    assert "the cluster has 2 CPUs" in message
    assert "rollout.threads" in message


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"asks for 1 GPUs.*the cluster has 0 GPUs"):
        plan(engine_gpus=0.5, rank_gpus=0.5).check({"CPU": 8})


@pytest.mark.parametrize("share", [1.5, -0.5])
def test_a_share_that_no_gpu_can_give_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"rollout.num_gpus"):
        plan(engine_gpus=share)
