"""The first things to run on a machine with a GPU: skipped elsewhere (tests/conftest.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.calls import call_actor
from actors.cluster import running_cluster
from actors.engine import Engine, engine_environment
from actors.host import remote_host
from actors.placement import plan_placement
from actors.pool import ActorPool, PoolSpec
from actors.rollout import RolloutActor
from actors.weight_senders import WeightSender
from actors.weight_sync import Sent, check_proof
from pipeline.config import ClusterConfig, LearnerConfig, RetrieverConfig
from pipeline.judging.config import JudgeConfig
from pipeline.types import Sampling
from tests.support.rollout import (
    ROLLOUT,
    actor_arguments,
    load_model,
    perturb,
    policy_config,
    reference_logprobs,
    weights_of,
)

GPU_ROLLOUT = replace(ROLLOUT, num_gpus=1.0, gpu_memory_utilization=0.2)
PROMPT = list(range(20, 70))


async def test_an_engine_on_a_gpu_samples_what_transformers_computes(tiny_policy: Path) -> None:
    engine = Engine(policy_config(tiny_policy), GPU_ROLLOUT, seed=0)
    out = await engine.generate(PROMPT, Sampling(max_round_tokens=40))
    expected = reference_logprobs(load_model(tiny_policy), [*PROMPT, *out.token_ids])
    np.testing.assert_allclose(out.logprobs, expected[len(PROMPT) - 1 :], atol=1e-3)
    engine.close()


async def test_the_object_store_receiver_also_updates_an_engine_on_a_gpu(
    tiny_policy: Path,
) -> None:
    engine = Engine(policy_config(tiny_policy), GPU_ROLLOUT, seed=0)
    model = load_model(tiny_policy)
    perturb(model, seed=1, scale=0.1)
    await engine.start_weight_update()
    await engine.receive_weights({"tensors": weights_of(model)})
    await engine.finish_weight_update(1)
    probe = await engine.probe(PROMPT)
    np.testing.assert_allclose(probe.logprobs, reference_logprobs(model, PROMPT), atol=1e-3)
    engine.close()


class SendingModel:
    """Stands for a learner rank: a model on the GPU and the sender that drives the engines."""

    def __init__(self, directory: str) -> None:
        self.model = load_model(Path(directory))
        perturb(self.model, seed=2, scale=0.1)
        self.model.cuda()
        self._sender = WeightSender("cuda_ipc", self._named_weights, rank=0, gpus_per_engine=1)

    def send_weights(self, version: int, hosts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return self._sender.send(version, hosts, timeout_s=60)

    def probe_logprobs(self, token_ids: np.ndarray) -> np.ndarray:
        return reference_logprobs(self.model.cpu(), token_ids)

    def _named_weights(self) -> Any:
        return ((name, p.detach()) for name, p in self.model.named_parameters())


async def test_cuda_ipc_between_two_processes_on_one_gpu_is_proven(tiny_policy: Path) -> None:
    rollout = replace(ROLLOUT, num_gpus=0.4, gpu_memory_utilization=0.2)
    learner = LearnerConfig(num_gpus=0.4)
    plan = plan_placement(rollout, RetrieverConfig(), JudgeConfig(), learner)
    assert plan.transport == "cuda_ipc"
    with running_cluster(ClusterConfig(address="local", num_cpus=4), plan) as cluster:
        spec = PoolSpec(
            name="rollout",
            factory=RolloutActor,
            members=[actor_arguments(tiny_policy, rollout=rollout, transport="cuda_ipc")],
            num_cpus=1,
            num_gpus=0.4,
            environment=engine_environment(rollout),
            start_timeout_s=240,
            request_timeout_s=120,
            max_retries=0,
        )
        engines = await ActorPool.start(spec, cluster.placements("rollout"))
        sender = remote_host(
            "learner-0",
            SendingModel,
            {"directory": str(tiny_policy)},
            num_cpus=1,
            num_gpus=0.4,
            environment={},
            max_concurrency=4,
            placement=cluster.placements("learner")[0],
        )
        member = engines.members[0]
        digest, receipts = await call_actor(
            "learner-0", sender, "send_weights", 1, {member.name: member.host}, timeout_s=240
        )
        probe_ids = np.array(PROMPT, dtype=np.int32)
        probe = await engines.call_member(member, "probe", probe_ids)
        expected = await call_actor("learner-0", sender, "probe_logprobs", probe_ids, timeout_s=60)
        sent = Sent(version=1, digest=digest, receipts=receipts)
        check_proof(member.name, sent, receipts[member.name], probe, expected=expected, bound=1e-3)
        await engines.stop()
