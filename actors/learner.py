"""The learner group: DeepSpeed ranks as Ray actors, seen by the driver as one learner.

Implements ``pipeline.pools.Learner``, and the source of weights that publishing needs. Every
call goes to all ranks at once, since most are collectives, and one call at a time; each has
the deadline ``learner.step_timeout_s``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actors.calls import await_call, call_actor
from actors.health import Health, Process, end_process, watch
from actors.host import remote_host
from actors.learner_rank import LearnerJob, LearnerRank
from pipeline.batch import make_rank_batches, to_samples
from pipeline.config import LearnerConfig
from pipeline.errors import ActorLostError, InfrastructureError, LateError, first_error
from pipeline.types import Sample

__all__ = ["LearnerGroup"]

logger = logging.getLogger(__name__)

_MAX_CALLS = 4  # that one rank has in hand: stats must answer during a train step


class LearnerGroup:
    """Made by ``start``; ended by ``stop``. All ranks are on one machine."""

    def __init__(self, config: LearnerConfig, hosts: Mapping[str, Any]) -> None:
        self._config, self._hosts = config, hosts
        self._turn = asyncio.Lock()  # collectives must not interleave
        self._processes: dict[str, Process] = {}
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        job: LearnerJob,
        *,
        placements: Sequence[Any] = (),
        health: Health | None = None,
    ) -> LearnerGroup:
        """Start all ranks and wait until each holds the policy.

        ``placements`` holds a Ray scheduling strategy a rank; a rank that ``health`` finds silent
        is ended. Raises UserError for a policy that cannot be loaded, InfrastructureError after
        ``start_timeout_s``; nothing is left then.
        """
        config = job.config
        hosts = {
            f"learner-{rank}": remote_host(
                f"learner-{rank}",
                LearnerRank,
                {"job": job, "rank": rank, "world_size": config.num_actors},
                num_cpus=config.threads,
                num_gpus=config.num_gpus,
                environment=_environment(config),
                max_concurrency=_MAX_CALLS,
                placement=placements[rank] if placements else None,
            )
            for rank in range(config.num_actors)
        }
        group = cls(config, hosts)
        try:
            address = await group._meet()
            await group._all("start", address, timeout_s=config.start_timeout_s)
        except BaseException:
            await group.stop()
            raise
        if health is not None:
            group._watching = asyncio.create_task(
                watch(health, group._hosts.items, group._processes.__setitem__, group._silent)
            )
        return group

    @property
    def hosts(self) -> Mapping[str, Any]:
        """The ranks' Ray handles by name."""
        return self._hosts

    async def train_step(
        self, samples: Sequence[Sample], normaliser: float, version: int = 0
    ) -> dict[str, float]:
        """See ``pipeline.pools.Learner``; metrics: docs/algorithms.md. ``update_s`` is seconds
        in the slowest rank."""
        async with self._turn:
            metrics = await self._each("train_step", self._batches(samples, normaliser, version))
        return {**metrics[0], "update_s": max(m["update_s"] for m in metrics)}

    async def logprobs(
        self, samples: Sequence[Sample], which: Literal["current", "reference"]
    ) -> list[np.ndarray]:
        """float32[L] a sample, 0 where the policy did not sample; temperature applied."""
        async with self._turn:
            parts = await self._each("logprobs", self._batches(samples, 1.0), which)
        return to_samples(samples, [p for rank in parts for p in rank])

    async def weights(self, *, timeout_s: float | None = None) -> tuple[Any, str]:
        """``(Ray reference to the float32 tensors by name, their digest)``."""
        timeout_s = timeout_s or self._config.step_timeout_s
        async with self._turn:
            names = list(self._hosts)
            calls = [
                self._hosts[name].call.options(num_returns=2).remote("weights") for name in names
            ]
            digests = await asyncio.gather(
                *(
                    await_call(name, "weights", digest, timeout_s=timeout_s)
                    for name, (_, digest) in zip(names, calls, strict=True)
                )
            )
        return calls[0][0], digests[0]

    async def send_weights(
        self, transport: str, version: int, hosts: Mapping[str, Any], *, timeout_s: float
    ) -> tuple[str, dict[str, Any]]:
        """From GPU to GPU: ``(digest of what was sent, each engine's receipt)``."""
        async with self._turn:
            sent = await self._all(
                "send_weights", transport, version, hosts, timeout_s, timeout_s=timeout_s
            )
        return sent[0]

    async def probe_logprobs(
        self, token_ids: np.ndarray, *, timeout_s: float | None = None
    ) -> np.ndarray:
        """float32[L-1]: log-probability of each token of int32[L] after those before it, at
        temperature 1 and the weights' own precision."""
        async with self._turn:
            return (await self._all("probe_logprobs", token_ids, timeout_s=timeout_s))[0]

    async def export_policy(self, directory: Path) -> None:
        """Write a plain Hugging Face directory, whole or not at all."""
        async with self._turn:
            await self._all("export_policy", str(Path(directory).absolute()))

    async def save_checkpoint(self, directory: Path) -> None:
        """See ``pipeline.pools.Learner``. Raises ActorLostError where one of several ranks failed:
        the others may wait for it, and cannot go on."""
        try:
            async with self._turn:
                await self._all("save_checkpoint", str(Path(directory).absolute()))
        except InfrastructureError as error:
            if self._config.num_actors == 1:
                raise
            raise ActorLostError(f"the ranks are out of step: {error}") from error

    async def load_checkpoint(self, directory: Path) -> None:
        """See ``pipeline.pools.Learner``."""
        async with self._turn:
            await self._all("load_checkpoint", str(Path(directory).absolute()))

    async def digest(self) -> str:
        """See ``pipeline.pools.Learner``."""
        async with self._turn:
            return (await self._all("digest"))[0]

    async def stats(self) -> Mapping[str, float]:
        """Totals: ``busy_s`` (rank 0's train steps), ``trained_tokens`` (all ranks)."""
        name, host = next(iter(self._hosts.items()))
        return await call_actor(name, host, "stats", timeout_s=self._config.step_timeout_s)

    async def stop(self) -> None:
        """End the ranks' processes."""
        import ray

        if self._watching is not None:
            self._watching.cancel()
        for host in self._hosts.values():
            ray.kill(host, no_restart=True)

    async def kill(self) -> None:
        """`stop`, also for ranks that no longer obey."""
        await self.stop()
        for process in self._processes.values():
            end_process(process)

    def _silent(self, name: str, error: InfrastructureError) -> None:
        """Its calls, and those of the ranks that wait for it, then end with ActorLostError."""
        if isinstance(error, LateError):
            logger.warning("ending the learner: %s", error)
            for process in self._processes.values():
                end_process(process)

    def _batches(self, samples: Sequence[Sample], normaliser: float, version: int = 0) -> list[Any]:
        return list(
            make_rank_batches(
                samples,
                normaliser,
                self._config.num_actors,
                self._config.tokens_per_micro_batch,
                version,
            )
        )

    async def _meet(self) -> tuple[str, int]:
        """Make the rank objects and ask rank 0 where they meet."""
        timeout_s = self._config.start_timeout_s
        references = {name: host.open.remote() for name, host in self._hosts.items()}
        opened = await _together(
            await_call(name, "open", reference, timeout_s=timeout_s)
            for name, reference in references.items()
        )
        self._processes.update(zip(self._hosts, opened, strict=True))
        for name, process in self._processes.items():
            logger.info("%s is process %d", name, process.pid)
        name, host = next(iter(self._hosts.items()))
        return await call_actor(name, host, "meeting_point", timeout_s=timeout_s)

    async def _all(self, method: str, *args: Any, timeout_s: float | None = None) -> list[Any]:
        """The same call on every rank; results by rank."""
        return await _together(
            call_actor(
                name, host, method, *args, timeout_s=timeout_s or self._config.step_timeout_s
            )
            for name, host in self._hosts.items()
        )

    async def _each(self, method: str, batches: Sequence[Any], *args: Any) -> list[Any]:
        """One batch a rank; results by rank."""
        return await _together(
            call_actor(name, host, method, batch, *args, timeout_s=self._config.step_timeout_s)
            for (name, host), batch in zip(self._hosts.items(), batches, strict=True)
        )


async def _together(calls: Any) -> list[Any]:
    """All results; the first failure cancels the other ranks' calls, which would only wait."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(call) for call in calls]
    except* Exception as errors:
        raise first_error(errors) from None
    return [task.result() for task in running]


def _environment(config: LearnerConfig) -> dict[str, str]:
    """Read by torch, tokenizers and DeepSpeed when they are imported."""
    return {
        "OMP_NUM_THREADS": str(config.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cuda" if config.num_gpus > 0 else "cpu",
    }
