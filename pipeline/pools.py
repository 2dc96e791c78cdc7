"""What the driver knows of the pools: protocols, no Ray.

``actors/`` implements them on Ray; ``tests/component`` implements them in process.
Every method may raise ``pipeline.errors.InfrastructureError`` after its own retries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pipeline.types import Group, Passage, RolloutRequest, Sample, Trajectory, Verdict

__all__ = [
    "JudgePool",
    "Learner",
    "PublishReport",
    "RetrieverPool",
    "RolloutPool",
    "WeightPublisher",
]


class RolloutPool(Protocol):
    """Engines that play whole search episodes."""

    async def rollout(self, request: RolloutRequest) -> Group:
        """Play ``request.num_samples`` episodes. Samples that failed are in ``errors``."""
        ...

    async def rollout_wave(self, requests: Sequence[RolloutRequest], seed: int) -> list[Group]:
        """Play all requests in lockstep, for ``deterministic=true``: the same weights, requests and
        ``seed`` give the same groups, to the last bit."""
        ...

    async def stats(self) -> Mapping[str, float]:
        """Totals since the start over all engines: ``generated_tokens``, ``busy_s`` (engine
        stepping), ``idle_s``, ``retrieve_s`` (episode seconds spent in search), ``rounds``. And how
        many episodes wait at the moment: ``waiting_rollout`` (for tokens), ``waiting_retriever``,
        ``waiting_judge`` (with ``judge.early``)."""
        ...


class RetrieverPool(Protocol):
    """Dense retrieval."""

    async def search(self, queries: Sequence[str], top_k: int) -> list[tuple[Passage, ...]]:
        """One tuple of at most ``top_k`` passages a query, best first."""
        ...

    async def stats(self) -> Mapping[str, float]:
        """Totals: ``queries``, ``cache_hits``, ``busy_s``."""
        ...


class JudgePool(Protocol):
    """Scores search rounds."""

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """For each trajectory one verdict a search round; ``None`` where judging failed."""
        ...

    async def stats(self) -> Mapping[str, float]:
        """Totals: ``rounds``, ``failures``, ``busy_s``, and those of language models
        (``judge/`` in docs/metrics.md)."""
        ...


class Learner(Protocol):
    """The DeepSpeed ranks, seen as one."""

    async def train_step(
        self, samples: Sequence[Sample], normaliser: float, version: int = 0
    ) -> dict[str, float]:
        """One optimizer step over ``samples``; the loss is summed and divided by
        ``normaliser`` once, over all ranks. ``version`` is that of the weights the train step
        starts from. Returns metrics (see docs/metrics.md)."""
        ...

    async def logprobs(
        self, samples: Sequence[Sample], which: Literal["current", "reference"]
    ) -> list[np.ndarray]:
        """float32[L] a sample, 0 where the policy did not sample."""
        ...

    async def export_policy(self, directory: Path) -> None:
        """Write a plain Hugging Face directory, atomically."""
        ...

    async def save_checkpoint(self, directory: Path) -> None:
        """Write all that training goes on from into ``directory``, synced."""
        ...

    async def load_checkpoint(self, directory: Path) -> None:
        """Become what ``save_checkpoint`` wrote. Raises InfrastructureError where it cannot."""
        ...

    async def digest(self) -> str:
        """The digest of the current weights in float32; that of a publish by the object store."""
        ...

    async def stats(self) -> Mapping[str, float]:
        """Totals: ``busy_s``, ``trained_tokens`` (policy tokens)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """The proof of one publish, over all engines in service."""

    version: int
    digest: str  # of the tensors sent, equal to that each engine received
    probe_error: float  # largest absolute log-probability difference on the probe prompt
    seconds: float  # wall time of the publish
    stall_s: float  # longest time generation stood still in one engine


class WeightPublisher(Protocol):
    """Moves the learner's weights into every engine and proves that they arrived."""

    async def publish(self, version: int) -> PublishReport:
        """Raises WeightProofError where an engine cannot prove it."""
        ...
