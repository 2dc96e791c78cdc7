"""Which actor gets how much of which machine: a pure function from config to resource bundles.

Pools that compute all the time (rollout, learner) reserve a CPU for each of their threads.
Retrievers and judges on the CPU reserve none: they run in the gaps while engines wait for them.

A GPU is one bundle of capacity 1. Actors with a fraction of a GPU share a bundle, engine i with
learner rank i where both fit, because CUDA IPC needs them on the same device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from actors.gpu_memory import check_gpu_memory
from pipeline.config import LearnerConfig, RetrieverConfig, RolloutConfig
from pipeline.errors import UserError
from pipeline.judging.config import JudgeConfig

__all__ = ["ActorShare", "Bundle", "PlacementPlan", "check_gpu_memory", "plan_placement"]

_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorShare:
    """What one actor reserves."""

    pool: str  # rollout | retriever | judge | learner
    index: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Actors that are placed together on one node (and, with GPUs, on the same devices)."""

    actors: tuple[ActorShare, ...]

    @property
    def num_cpus(self) -> float:
        """CPUs of all its actors."""
        return sum(actor.num_cpus for actor in self.actors)

    @property
    def num_gpus(self) -> float:
        """Whole GPUs that its actors' shares need (fractions of one GPU share it)."""
        return float(math.ceil(sum(actor.num_gpus for actor in self.actors) - _EPSILON))

    def resources(self) -> dict[str, float]:
        """As Ray's placement groups want it."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in amounts.items() if amount > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """Every actor's share, and the bundles of those that reserve anything."""

    actors: tuple[ActorShare, ...]
    bundles: tuple[Bundle, ...]

    @property
    def num_cpus(self) -> float:
        """CPUs reserved in all."""
        return sum(bundle.num_cpus for bundle in self.bundles)

    @property
    def num_gpus(self) -> float:
        """GPUs reserved in all."""
        return sum(bundle.num_gpus for bundle in self.bundles)

    def bundle_of(self, pool: str, index: int) -> int | None:
        """The number of an actor's bundle; None for one that reserves nothing."""
        for number, bundle in enumerate(self.bundles):
            if any(a.pool == pool and a.index == index for a in bundle.actors):
                return number
        return None

    def share_of(self, pool: str) -> ActorShare:
        """What each actor of a pool reserves (all of a pool reserve the same)."""
        return next(actor for actor in self.actors if actor.pool == pool)

    @property
    def transport(self) -> str:
        """How weights travel (a key of ``actors.weight_receivers.BACKENDS``).

        The object store without a GPU; CUDA IPC where every engine shares its GPU with a learner
        rank; else NCCL.
        """
        engines = [a for a in self.actors if a.pool == "rollout"]
        if not any(engine.num_gpus for engine in engines):
            return "object_store"
        together = [
            any(a.pool == "learner" for a in self.bundles[number].actors)
            for engine in engines
            if (number := self.bundle_of("rollout", engine.index)) is not None
        ]
        return "cuda_ipc" if all(together) else "nccl"

    def check(self, available: Mapping[str, float]) -> None:
        """Raise UserError, in one message, where the plan asks for more than there is.

        ``available`` maps Ray's resource names to amounts; a missing name is 0.
        """
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        short = {n: a for n, a in asked.items() if a > available.get(n, 0.0) + _EPSILON}
        if not short:
            return
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in short.items())
        there = " and ".join(f"{available.get(name, 0.0):g} {name}s" for name in short)
        raise UserError(
            f"this run asks for {wanted} ({self._breakdown()}), the cluster has {there}: "
            f"lower {' or '.join(_REMEDIES[name] for name in short)}"
        )

    def _breakdown(self) -> str:
        pools = dict.fromkeys(actor.pool for actor in self.actors)
        shares = []
        for pool in pools:
            share = self.share_of(pool)
            if share.num_cpus or share.num_gpus:
                count = sum(actor.pool == pool for actor in self.actors)
                shares.append(f"{count} x {pool} of {share.num_cpus:g} CPU, {share.num_gpus:g} GPU")
        return "; ".join(shares)


_REMEDIES = {
    "CPU": "rollout.num_actors, rollout.threads, learner.num_actors or learner.threads, "
    "or overcommit with a higher cluster.num_cpus",
    "GPU": "rollout.num_gpus, rollout.num_actors, learner.num_gpus or learner.num_actors, "
    "or take a CPU experiment",
}


def plan_placement(
    rollout: RolloutConfig,
    retriever: RetrieverConfig,
    judge: JudgeConfig,
    learner: LearnerConfig,
) -> PlacementPlan:
    """Lay out all pools. Raises UserError for a GPU share that no device can give.

    >>> plan = plan_placement(
    ...     RolloutConfig(threads=1), RetrieverConfig(encoder="e"), JudgeConfig(), LearnerConfig())
    >>> plan.num_cpus, plan.num_gpus, plan.transport
    (2.0, 0.0, 'object_store')
    """
    for section, gpus in (
        ("rollout", rollout.num_gpus),
        ("retriever", retriever.num_gpus),
        ("judge", judge.num_gpus),
        ("learner", learner.num_gpus),
    ):
        _check_share(section, gpus)
    num_retrievers = 0 if retriever.url else retriever.num_actors
    retriever_cpus = float(retriever.threads) if retriever.num_gpus else 0.0
    judge_cpus = float(judge.threads) if judge.num_gpus else 0.0
    actors = (
        *_shares("rollout", rollout.num_actors, float(rollout.threads), rollout.num_gpus),
        *_shares("learner", learner.num_actors, float(learner.threads), learner.num_gpus),
        *_shares("retriever", num_retrievers, retriever_cpus, retriever.num_gpus),
        *_shares("judge", judge.num_actors, judge_cpus, judge.num_gpus),
    )
    return PlacementPlan(actors=actors, bundles=_pack(actors))


def _check_share(section: str, num_gpus: float) -> None:
    if num_gpus < 0 or (num_gpus > 1 and num_gpus != int(num_gpus)):
        raise UserError(
            f"{section}.num_gpus={num_gpus:g} is no share of a GPU: use a fraction up to 1, "
            "or a whole number of GPUs"
        )


def _shares(pool: str, count: int, num_cpus: float, num_gpus: float) -> list[ActorShare]:
    return [
        ActorShare(pool=pool, index=index, num_cpus=num_cpus, num_gpus=num_gpus)
        for index in range(count)
    ]


def _pack(actors: tuple[ActorShare, ...]) -> tuple[Bundle, ...]:
    """First fit, actors of the same index after each other; CPU actors get their own bundle."""
    packed: list[list[ActorShare]] = []
    for actor in sorted(actors, key=lambda a: a.index):
        if not (actor.num_cpus or actor.num_gpus):
            continue
        room = next((b for b in packed if _fits(b, actor)), None)
        if room is None:
            packed.append([actor])
        else:
            room.append(actor)
    return tuple(Bundle(actors=tuple(bundle)) for bundle in packed)


def _fits(bundle: list[ActorShare], actor: ActorShare) -> bool:
    """Whether the actor's GPU fraction fits in what the bundle's one GPU has left."""
    taken = sum(other.num_gpus for other in bundle)
    return 0 < actor.num_gpus < 1 and taken > 0 and taken + actor.num_gpus <= 1 + _EPSILON
