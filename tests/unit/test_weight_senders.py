"""The NCCL group of a publish has a rank for every GPU of every engine, and one for the learner."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import weight_senders
from actors.learner_rank import LearnerRank
from pipeline.config import GleanerConfig
from pipeline.config_checks import check
from pipeline.errors import UserError
from pipeline.launch import learner_job


def config_of(policy: Path, parallel: int, num_gpus: float) -> GleanerConfig:
    config = GleanerConfig()
    config.policy.path, config.policy.max_model_len = str(policy), 512
    config.retriever.encoder = "e"
    config.rollout.tensor_parallel_size, config.rollout.num_gpus = parallel, num_gpus
    config.cluster.gpu_memory_gib = 20
    return config


def test_an_engine_over_two_gpus_has_two_ranks(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[tuple[int, list[dict[str, Any]]]] = []

    class Trainer:
        """In the place of vLLM's: notes the group, and joins the engines to it."""

        def __init__(self, sender: Any, num_engines: int) -> None:
            world_size = weight_senders.rank_offset_of(num_engines, sender._gpus)
            infos: list[dict[str, Any]] = []
            monkeypatch.setattr(
                sender._client, "_each", lambda method, arguments: infos.extend(arguments)
            )
            sender._client.init_weight_transfer_engine({"rank_offset": 1})
            groups.append((world_size, infos))

        def send_weights(self) -> None: ...

    def connect(sender: Any, hosts: dict[str, Any]) -> None:
        sender._engine = Trainer(sender, len(hosts))

    monkeypatch.setattr(weight_senders.WeightSender, "_connect", connect)
    rank = LearnerRank(learner_job(config_of(tiny_policy, parallel=2, num_gpus=2)))
    rank._engine = SimpleNamespace(named_weights=lambda: iter(()))
    rank.send_weights("nccl", 1, {"rollout-0": None, "rollout-1": None}, timeout_s=1)
    assert groups == [(5, [{"rank_offset": 1}, {"rank_offset": 3}])]


@pytest.mark.parametrize("num_gpus", [0.4, 1, 3])
def test_an_engine_over_two_gpus_needs_two_whole_ones(tiny_policy: Path, num_gpus: float) -> None:
    check(config_of(tiny_policy, parallel=2, num_gpus=2))
    with pytest.raises(UserError, match=r"it needs rollout\.num_gpus=2"):
        check(config_of(tiny_policy, parallel=2, num_gpus=num_gpus))
