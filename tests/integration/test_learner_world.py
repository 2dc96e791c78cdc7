"""Several ranks compute what one does, whatever ZeRO stage; and the group of Ray actors."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.cluster import running_cluster
from actors.learner import LearnerGroup
from actors.learner_rank import LearnerJob, LearnerRank
from actors.placement import PlacementPlan
from actors.weight_digest import digest_tensors
from pipeline.batch import make_rank_batches
from pipeline.config import ClusterConfig, LearnerConfig
from pipeline.credit import Correction, Objective
from pipeline.errors import UserError
from tests.support.learner_cases import SGD, credit, make_rank, step, weights_of

STAGES = (0, 1, 2, 3)
SMALL_STEPS = replace(SGD, lr=0.01)
LORA = replace(SGD, lr=0.02, lora_rank=4)
ROUND_CORRECTED = Objective(
    loss="gspo",
    recompute_proximal=True,
    correction=Correction(kind="masked", level="round", low=0.1, high=10.0),
)
DEADLINE_S = 600.0


def scaled() -> tuple[list[Any], float]:
    """A batch with gradients far above what float32 weights lose in a difference."""
    batch = credit()
    return list(batch.samples), batch.normaliser / 1000


def three_steps(learner: LearnerRank, rank: int, world_size: int) -> np.ndarray:
    """Weights after three steps of plain SGD, on samples that the policy may well have sampled."""
    batch = credit()
    samples = [
        # an untrained policy gives every token about exp(-9)
        replace(s, sampler_logprobs=np.where(s.loss_mask, s.sampler_logprobs - 8.6, 0).astype("f4"))
        for s in batch.samples
    ]
    for _ in range(3):
        batches = make_rank_batches(samples, batch.normaliser, world_size, 60)
        metrics = learner.train_step(batches[rank])
        if learner._objective.correction.kind == "masked":
            assert 0 < metrics["correction_cut_fraction"] < 1  # some rounds are cut, not all
    return flat(learner.weights()[0])


def after_a_checkpoint(stage: int, policy: Path, directory: Path, rank: int, address: Any) -> Any:
    """Weights after two steps of AdamW, and after a step, a checkpoint, a new pair of ranks and the
    other step."""
    batch = credit()
    mine = make_rank_batches(batch.samples, batch.normaliser, 2, 60)[rank]
    job = job_of(LearnerConfig(lr=0.01, zero_stage=stage), policy)
    first, second = (LearnerRank(job, rank=rank, world_size=2) for _ in range(2))
    first.start(address)
    first.train_step(mine)
    first.save_checkpoint(str(directory / str(stage)))
    first.train_step(mine)
    second.start(address)
    second.load_checkpoint(str(directory / str(stage)))
    second.train_step(mine)
    return flat(first.weights()[0]), flat(second.weights()[0])


def run_rank(
    rank: int, policy: Path, directory: Path, results: Any, inbox: Any, outbox: Any
) -> None:
    """One process of two: a step at every stage; rank 0 reports weight changes and norms."""
    samples, normaliser = scaled()
    address = inbox.recv() if rank else None
    for stage in STAGES:
        job = job_of(replace(SGD, zero_stage=stage), policy)
        learner = LearnerRank(job, rank=rank, world_size=2)
        if rank == 0 and address is None:
            first = learner  # its store stays open for all stages
            address = first.meeting_point()
            outbox.send(address)
        learner.start(address)
        before = flat(learner.weights()[0])
        batch = make_rank_batches(samples, normaliser, 2, 60)[rank]
        metrics = learner.train_step(batch)
        results.put((rank, stage, before - flat(learner.weights()[0]), metrics))
        learner.weights()  # once more: leave together
    for name, config, objective in (*VARIANTS, *REPORTED):
        for stage in stages_of(config):
            learner = LearnerRank(
                job_of(replace(config, zero_stage=stage), policy, objective),
                rank=rank,
                world_size=2,
            )
            learner.start(address)
            made = three_steps(learner, rank, 2)
            reference = reference_logprobs(learner, rank, 2) if objective.needs_reference else {}
            results.put((rank, f"{name} {stage}", made, reference))
            learner.weights()
    for stage in STAGES:
        whole, resumed = after_a_checkpoint(stage, policy, directory, rank, address)
        results.put((rank, f"checkpoint {stage}", whole, resumed))


def stages_of(config: LearnerConfig) -> tuple[int, ...]:
    """In bfloat16 DeepSpeed has no stage 0 with float32 gradients."""
    return STAGES[1:] if config.dtype == "bfloat16" else STAGES


def reference_logprobs(learner: LearnerRank, rank: int, world_size: int) -> dict[Any, float]:
    """(sample, place) -> log-probability by the frozen reference, of this rank's share."""
    batch = make_rank_batches(credit().samples, 1.0, world_size, 60)[rank]
    return {
        (int(s), int(p)): float(value)
        for part in learner.logprobs(batch, "reference")
        for s, p, value in zip(part.sample_P, part.place_P, part.logprobs_P, strict=True)
    }


VARIANTS = (
    ("plain", SMALL_STEPS, Objective()),
    ("lora", LORA, Objective(kl_coef=0.1, kl_in="reward")),
    ("round", replace(SGD, lr=0.02), ROUND_CORRECTED),
)
# AdamW's first step is the sign of the gradient and bfloat16 rounds it: differences are told.
REPORTED = (
    ("adamw", LearnerConfig(lr=1.5e-4), Objective()),
    ("adamw_bfloat16", LearnerConfig(lr=1.5e-4, dtype="bfloat16"), Objective()),
)


def job_of(config: LearnerConfig, policy: Path, objective: Objective | None = None) -> LearnerJob:
    return LearnerJob(
        config,
        objective or Objective(),
        model_path=str(policy),
        temperature=0.7,
        total_steps=3,
    )


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    parts = [tensors[name].ravel() for name in sorted(tensors)]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


@pytest.fixture(scope="module")
def two_ranks(
    tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[int, Any], Any]]:
    """(rank, stage) -> (weight change, metrics); (rank, "variant stage") -> (weights, {});
    (rank, "checkpoint stage") -> (weights, weights of a resumed pair)."""
    directory = tmp_path_factory.mktemp("checkpoints")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    receive, send = context.Pipe(duplex=False)
    processes = [
        context.Process(
            target=run_rank,
            args=(rank, tiny_policy, directory, results, receive, send),
            daemon=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    try:
        configs = [SGD, *(config for _, config, _ in (*VARIANTS, *REPORTED))]
        count = 2 * (sum(len(stages_of(config)) for config in configs) + len(STAGES))
        got = [results.get(timeout=DEADLINE_S) for _ in range(count)]
        yield {(rank, stage): (change, metrics) for rank, stage, change, metrics in got}
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def test_the_two_ranks_have_unequal_numbers_of_trained_tokens() -> None:
    samples, normaliser = scaled()
    trained = [
        sum(m.num_trained for m in b.micro_batches)
        for b in make_rank_batches(samples, normaliser, 2, 60)
    ]
    assert trained[0] != trained[1]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_with_unequal_tokens_equal_one_rank(
    two_ranks: dict[tuple[int, int], Any], tiny_policy: Path, stage: int
) -> None:
    alone = make_rank(tiny_policy, SGD)
    before = weights_of(alone)
    expected = step(alone, *scaled())
    gradient = before - weights_of(alone)
    change, metrics = two_ranks[0, stage]
    assert np.linalg.norm(change - gradient) / np.linalg.norm(gradient) < 1e-5
    for name in ("loss", "grad_norm", "entropy", "ratio_mean", "trained_tokens", "clip_fraction"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("name", "config", "objective"), VARIANTS, ids=[v[0] for v in VARIANTS])
def test_three_steps_of_plain_sgd_end_at_the_same_weights(
    two_ranks: dict[tuple[int, Any], Any],
    tiny_policy: Path,
    stage: int,
    name: str,
    config: LearnerConfig,
    objective: Objective,
) -> None:
    alone = LearnerRank(job_of(config, tiny_policy, objective))
    alone.start()
    start = weights_of(alone)
    expected = three_steps(alone, 0, 1)
    made, _ = two_ranks[0, f"{name} {stage}"]
    assert np.linalg.norm(made - expected) / np.linalg.norm(expected) < 1e-5
    moved = np.linalg.norm(expected - start) / np.linalg.norm(start)
    assert moved > 1e-4  # the steps are no smaller than what is asserted
    assert np.linalg.norm(made - expected) / np.linalg.norm(expected - start) < 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_two_ranks_goes_on_to_the_last_bit(
    two_ranks: dict[tuple[int, Any], Any], stage: int
) -> None:
    whole, resumed = two_ranks[0, f"checkpoint {stage}"]
    assert len(whole) > 0 and np.array_equal(whole, resumed)


@pytest.mark.parametrize("stage", STAGES)
def test_the_reference_of_lora_is_the_policy_that_training_began_with(
    two_ranks: dict[tuple[int, Any], Any], tiny_policy: Path, stage: int
) -> None:
    """On both ranks, after three steps have moved the adapters."""
    alone = LearnerRank(job_of(SGD, tiny_policy, Objective(kl_coef=0.1, kl_in="reward")))
    alone.start()
    expected = reference_logprobs(alone, 0, 1)
    found = two_ranks[0, f"lora {stage}"][1] | two_ranks[1, f"lora {stage}"][1]
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "config", "objective", "stage"),
    [(*reported, stage) for reported in REPORTED for stage in stages_of(reported[1])],
)
def test_under_adamw_the_difference_of_two_ranks_is_told(
    two_ranks: dict[tuple[int, Any], Any],
    tiny_policy: Path,
    name: str,
    config: LearnerConfig,
    objective: Objective,
    stage: int,
) -> None:
    """Shown by ``pytest -s``; docs/experiments.md has the figures. It is rounding: a wrong
    gradient would show as a large part of what three steps move."""
    alone = LearnerRank(job_of(replace(config, zero_stage=stage), tiny_policy, objective))
    alone.start()
    start = weights_of(alone)
    expected = three_steps(alone, 0, 1)
    made, _ = two_ranks[0, f"{name} {stage}"]
    difference = np.linalg.norm(made - expected)
    of_weights = difference / np.linalg.norm(expected)
    of_movement = difference / np.linalg.norm(expected - start)
    print(
        f"{name}, ZeRO {stage}: two ranks differ from one by {of_weights:.1e} of the weights, "
        f"{of_movement:.1e} of what three steps moved"
    )
    assert of_movement < 0.3


def test_all_ranks_report_the_metrics_of_the_whole_batch(
    two_ranks: dict[tuple[int, int], Any],
) -> None:
    for stage in STAGES:
        first, second = two_ranks[0, stage][1], two_ranks[1, stage][1]
        assert {k: v for k, v in first.items() if k != "update_s"} == pytest.approx(
            {k: v for k, v in second.items() if k != "update_s"}
        )


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    config = ClusterConfig(address="local", num_cpus=2, object_store_gib=0.1)
    with running_cluster(config, PlacementPlan(actors=(), bundles=())):
        yield


async def test_the_group_trains_publishes_and_exports_like_a_rank_alone(
    ray_cluster: None, tiny_policy: Path, tmp_path: Path
) -> None:
    import ray

    alone, batch = make_rank(tiny_policy, SGD), credit()
    group = await start(tiny_policy, SGD)
    try:
        metrics = await group.train_step(batch.samples, batch.normaliser)
        expected = step(alone, batch.samples, batch.normaliser)
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        reference, digest = await group.weights()
        tensors = await asyncio.wrap_future(reference.future())
        assert digest == digest_tensors(tensors) == alone.weights()[1]
        probe = np.arange(30, dtype=np.int32)
        np.testing.assert_array_equal(
            await group.probe_logprobs(probe), alone.probe_logprobs(probe)
        )
        await group.export_policy(tmp_path / "policy")
        assert (tmp_path / "policy" / "model.safetensors").is_file()
        assert (await group.stats())["trained_tokens"] == expected["trained_tokens"]
    finally:
        await group.stop()
    with pytest.raises(ray.exceptions.RayActorError):
        await next(iter(group._hosts.values())).open.remote()


async def test_a_policy_without_a_tokenizer_ends_the_start_with_one_message(
    ray_cluster: None, tiny_policy: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_policy / name).read_bytes())
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer\.json\)"):
        await start(tmp_path, SGD)


async def start(policy: Path, config: LearnerConfig) -> LearnerGroup:
    return await LearnerGroup.start(
        LearnerJob(config, Objective(), model_path=str(policy), temperature=0.7, total_steps=10)
    )
