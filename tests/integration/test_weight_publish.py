"""Publishing on real Ray actors with real engines: the proof, its refusals, a replaced engine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.cluster import running_cluster
from actors.engine import engine_environment
from actors.placement import plan_placement
from actors.pool import ActorPool, PoolSpec
from actors.ray_pools import RayRolloutPool
from actors.weight_digest import digest_tensors
from actors.weight_sync import ObjectStoreTransport, Publisher, probe_prompt
from pipeline.config import ClusterConfig, LearnerConfig, RetrieverConfig, RolloutConfig
from pipeline.errors import WeightProofError
from pipeline.judging.config import JudgeConfig
from pipeline.types import RolloutRequest, Sampling
from tests.support.rollout import (
    QUESTION,
    ROLLOUT,
    ModelAsLearner,
    actor_arguments,
    make_actor,
    perturb,
    policy_config,
    weights_of,
)

KINDS = ("honest", "corrupting", "forgetting")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    config = ClusterConfig(address="local", num_cpus=4, object_store_gib=0.2)
    plan = plan_placement(
        RolloutConfig(num_actors=len(KINDS)), RetrieverConfig(), JudgeConfig(), LearnerConfig()
    )
    with running_cluster(config, plan) as cluster:
        yield cluster


async def start_engines(cluster: Any, directory: Path, kinds: tuple[str, ...]) -> ActorPool:
    spec = PoolSpec(
        name="rollout",
        factory=make_actor,
        members=[{"kind": kind, **actor_arguments(directory)} for kind in kinds],
        num_cpus=1,
        environment=engine_environment(ROLLOUT),
        start_timeout_s=500,
        request_timeout_s=120,
        max_retries=2,
    )
    return await ActorPool.start(spec, cluster.placements("rollout"))


def publisher_of(learner: ModelAsLearner, engines: ActorPool, directory: Path) -> Publisher:
    return Publisher(
        learner,
        ObjectStoreTransport(learner, engines, timeout_s=60),
        engines,
        probe_ids=probe_prompt(policy_config(directory)),
        bound=1e-4,
        timeout_s=60,
    )


@pytest.fixture
async def one_engine(cluster: Any, tiny_policy: Path) -> AsyncIterator[ActorPool]:
    engines = await start_engines(cluster, tiny_policy, ("honest",))
    yield engines
    await engines.stop()


async def test_an_honest_engine_proves_new_weights_plays_with_them_and_survives_its_process(
    one_engine: ActorPool, tiny_policy: Path
) -> None:
    learner = ModelAsLearner(tiny_policy)
    publisher = publisher_of(learner, one_engine, tiny_policy)
    pool = RayRolloutPool(one_engine)
    request = RolloutRequest(
        question=QUESTION,
        group_id=7,
        num_samples=3,
        admission_version=1,
        sampling=Sampling(max_round_tokens=24),
    )
    perturb(learner.model, seed=1)
    report = await publisher.publish(1)
    assert report.version == 1
    assert report.digest == digest_tensors(weights_of(learner.model))
    assert report.probe_error <= 1e-4
    assert 0 < report.stall_s < report.seconds

    group = await pool.rollout(request)
    assert [t.sample_id for t in group.trajectories] == [0, 1, 2]
    assert {t.oldest_version() for t in group.trajectories} == {1}
    stats = await pool.stats()
    assert stats["generated_tokens"] >= sum(t.num_policy_tokens for t in group.trajectories)

    killed = one_engine.members[0].pid
    os.kill(killed, 9)
    again = await pool.rollout(request)  # retried on the engine that took its place
    assert one_engine.members[0].pid != killed
    assert one_engine.replaced == 1
    # Only the published weights can have stamped this: a fresh engine starts at version 0.
    assert {t.oldest_version() for t in again.trajectories} == {1}


async def test_a_tensor_changed_in_transit_is_refused(
    one_engine: ActorPool, tiny_policy: Path
) -> None:
    learner = ModelAsLearner(tiny_policy)
    publisher = publisher_of(learner, one_engine, tiny_policy)

    def flip_one_number(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] *= 1.0001

    learner.in_transit = flip_one_number
    with pytest.raises(WeightProofError, match=r"rollout-0 cannot prove weight version 1.*digest"):
        await publisher.publish(1)


async def test_engines_that_compute_with_other_weights_are_replaced_and_never_used(
    cluster: Any, tiny_policy: Path
) -> None:
    """The right tensors arrive (digests agree), but one number of a packed matrix is wrong in
    the second engine, and the third keeps its old tied head. So do their replacements."""
    engines = await start_engines(cluster, tiny_policy, KINDS)
    try:
        learner = ModelAsLearner(tiny_policy)
        publisher = publisher_of(learner, engines, tiny_policy)
        perturb(learner.model, seed=2)
        report = await publisher.publish(1)
        assert report.probe_error <= 1e-4
        assert [member.name for member in engines.in_service] == ["rollout-0"]
        await engines.wait_replaced()
        assert [member.name for member in engines.in_service] == ["rollout-0"]
        assert "although the right tensors arrived" in engines.why_lost
        assert engines.replaced == 0
    finally:
        await engines.stop()
