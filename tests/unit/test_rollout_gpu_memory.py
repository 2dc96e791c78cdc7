"""The GPU arithmetic against numbers computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actors.gpu_memory import (
    QWEN3_1_7B,
    QWEN3_8B,
    ModelShape,
    check_gpu_memory,
    engine_need,
    learner_need,
)
from actors.placement import plan_placement
from pipeline.config import (
    AlgorithmConfig,
    ClusterConfig,
    GleanerConfig,
    LearnerConfig,
    PolicyConfig,
    RolloutConfig,
)
from pipeline.config_checks import to_config
from pipeline.errors import UserError
from pipeline.overrides import compose_config

GIB = 2**30


def shared_gpu(**cluster: float) -> GleanerConfig:
    """Qwen3-1.7B, engine and learner on one GPU."""
    return GleanerConfig(
        policy=PolicyConfig(path="Qwen/Qwen3-1.7B", dtype="bfloat16", max_model_len=4096),
        rollout=RolloutConfig(num_gpus=0.45, gpu_memory_utilization=0.4),
        learner=LearnerConfig(
            num_gpus=0.45,
            dtype="bfloat16",
            offload_optimizer=True,
            gradient_checkpointing=True,
            tokens_per_micro_batch=4096,
        ),
        cluster=ClusterConfig(**cluster),
    )


def test_the_published_models_have_their_published_sizes() -> None:
    # Qwen3-1.7B: 28 x (2048*128*2*(16+8) + 3*2048*6144) + 151936*2048
    assert QWEN3_1_7B.num_parameters == 28 * (12_582_912 + 37_748_736) + 311_164_928
    assert QWEN3_8B.num_parameters == pytest.approx(8.19e9, rel=0.001)


def test_a_model_directory_is_counted_as_transformers_counts_it(tiny_policy: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = ModelShape.from_config(json.loads((tiny_policy / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert shape.num_parameters == matrices


def test_the_kv_cache_of_eight_whole_trajectories_in_bf16() -> None:
    need = engine_need(
        QWEN3_1_7B, PolicyConfig(dtype="bfloat16", max_model_len=4096), RolloutConfig(num_gpus=1)
    )
    # 2 (key, value) x 28 layers x 8 heads x 128 = 57,344 numbers a token, 2 bytes each
    assert need.parts["KV cache"] == pytest.approx(57_344 * 2 * 4096 * 8 / GIB)


def test_tensor_parallelism_halves_weights_and_cache_on_two_gpus() -> None:
    policy = PolicyConfig(dtype="bfloat16", max_model_len=4096)
    one = engine_need(QWEN3_8B, policy, RolloutConfig(num_gpus=1))
    two = engine_need(QWEN3_8B, policy, RolloutConfig(num_gpus=2, tensor_parallel_size=2))
    assert two.parts["engine weights"] == one.parts["engine weights"] / 2
    assert two.parts["KV cache"] == one.parts["KV cache"] / 2


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 1, 1, 1), (1, 1, 1, 4), (2, 1, 4, 4)],
)
def test_zero_divides_what_its_stage_says(
    stage: int, weights: int, gradients: int, optimizer: int
) -> None:
    config = LearnerConfig(dtype="bfloat16", num_actors=4, zero_stage=stage)
    parts = learner_need(QWEN3_1_7B, config, with_reference=False).parts
    size = QWEN3_1_7B.num_parameters / GIB
    assert parts["weights"] == pytest.approx(2 * size / weights)
    assert parts["gradients"] == pytest.approx(2 * size / gradients)
    assert parts["optimizer"] == pytest.approx(12 * size / optimizer)
    assert parts["gradient sums"] == pytest.approx(4 * size / optimizer)


def test_zero_3_shards_the_weights_and_gathers_one_matrix() -> None:
    config = LearnerConfig(dtype="bfloat16", num_actors=4, zero_stage=3)
    parts = learner_need(QWEN3_8B, config, with_reference=False).parts
    shard = 2 * QWEN3_8B.num_parameters / 4
    assert parts["weights"] == pytest.approx((shard + 2 * 151_936 * 4096) / GIB)


def test_offloading_takes_the_optimizer_off_the_gpu_and_kl_adds_a_reference() -> None:
    config = LearnerConfig(dtype="bfloat16", offload_optimizer=True)
    parts = learner_need(QWEN3_1_7B, config, with_reference=True).parts
    assert "optimizer" not in parts
    assert "gradient sums" not in parts
    assert parts["reference"] == parts["weights"]


def test_fp32_training_keeps_no_master_copy() -> None:
    parts = learner_need(QWEN3_1_7B, LearnerConfig(dtype="float32"), with_reference=False).parts
    assert parts["optimizer"] == pytest.approx(8 * QWEN3_1_7B.num_parameters / GIB)
    assert "gradient sums" not in parts


def test_a_gpu_that_is_large_enough_passes() -> None:
    check_gpu_memory(shared_gpu(gpu_memory_gib=22))


def test_a_gpu_without_room_for_the_learner_is_refused_with_the_sum() -> None:
    # 20 GiB: vLLM takes 8, which leaves 12.0 for a learner that needs 12.5
    with pytest.raises(UserError, match=r"too small for the learner: .* = 12\.5 GiB.* 12\.0 GiB"):
        check_gpu_memory(shared_gpu(gpu_memory_gib=20))


def test_an_engine_share_that_holds_no_cache_is_refused() -> None:
    with pytest.raises(UserError, match=r"too small for the rollout: .* = 7\.5 GiB.* 6\.0 GiB"):
        check_gpu_memory(shared_gpu(gpu_memory_gib=15))


def test_a_reference_model_counts_where_the_loss_has_a_kl_term() -> None:
    config = shared_gpu(gpu_memory_gib=22)
    config = replace(config, algorithm=AlgorithmConfig(kl_coef=0.001))
    with pytest.raises(UserError, match=r"reference 3\.2"):
        check_gpu_memory(config)


def test_a_cpu_run_has_nothing_to_check() -> None:
    check_gpu_memory(GleanerConfig(policy=PolicyConfig(path="anything")))


@pytest.mark.parametrize("experiment", ["gpu_default", "paper_qwen3_1_7b", "paper_qwen3_8b"])
def test_each_shipped_gpu_experiment_has_the_memory_and_the_placement_it_needs(
    experiment: str,
) -> None:
    config = to_config(compose_config([f"experiment={experiment}", "run_dir=unused"]))
    check_gpu_memory(config)
    plan = plan_placement(config.rollout, config.retriever, config.judge, config.learner)
    assert plan.num_gpus == {"gpu_default": 1}.get(experiment, plan.num_gpus)
    assert plan.transport == {"gpu_default": "cuda_ipc"}.get(experiment, "nccl")
