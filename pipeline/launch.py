"""The composition root: the only place that knows both the pipeline and the actors.

``open_stack`` starts the cluster and the four pools, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from actors.cluster import Cluster, running_cluster
from actors.engine import engine_environment
from actors.gpu_memory import check_gpu_memory
from actors.health import Health, spans_of, stacks_of, stacks_of_this_process
from actors.judge import Judge, judge_environment, judge_models
from actors.learner import LearnerGroup
from actors.learner_rank import LearnerJob
from actors.placement import plan_placement
from actors.pool import ActorPool, PoolSpec
from actors.ray_pools import (
    RayJudgePool,
    RayRetrieverPool,
    RayRolloutPool,
    RemoteJudge,
    RemoteSearch,
)
from actors.retriever import Retriever
from actors.rollout import RolloutActor
from actors.weight_sync import Publisher, open_publisher
from pipeline.config import GleanerConfig
from pipeline.credit import build_algorithm
from pipeline.episode.rewards import OutcomeReward
from pipeline.errors import GleanerError, LateError, UserError, first_error
from pipeline.judging.config import JudgeConfig
from pipeline.judging.members import judges_by_round
from pipeline.preflight import check_builds, check_judge
from pipeline.recovery import RecoveringLearner
from pipeline.trace import Span

__all__ = [
    "Stack",
    "check_open_judge",
    "learner_job",
    "open_judge",
    "open_learner",
    "open_stack",
    "retriever_spec",
]

_T = TypeVar("_T")

# Of a group's deadline: what a search may take with its retries and its waiting for retrievers, so
# that the error of one that fails names the retriever.
_SEARCH_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The pools of a run. ``learner`` and ``publisher`` are absent in an evaluation."""

    rollout: RayRolloutPool
    retriever: RayRetrieverPool
    judge: RayJudgePool
    config: GleanerConfig
    maybe_learner: RecoveringLearner | None = None
    maybe_publisher: Publisher | None = None

    @property
    def learner(self) -> RecoveringLearner:
        """The learner. Raises RuntimeError where the stack was opened without one."""
        if self.maybe_learner is None:
            raise RuntimeError("this stack was opened without a learner")
        return self.maybe_learner

    @property
    def publisher(self) -> Publisher:
        """The weight publisher. Raises RuntimeError where there is no learner."""
        if self.maybe_publisher is None:
            raise RuntimeError("this stack was opened without a learner")
        return self.maybe_publisher

    async def stacks(self) -> str:
        """What every thread of every actor and of this process is doing, for a person."""
        hosts = self.hosts()
        texts = await asyncio.gather(*(stacks_of(name, host) for name, host in hosts.items()))
        own = f"==== the driver\n{stacks_of_this_process()}"
        return "\n".join([own, *(f"==== {n}\n{t}" for n, t in zip(hosts, texts, strict=True))])

    async def spans(self) -> dict[str, list[Span]]:
        """What every actor did when, by name."""
        hosts = self.hosts()
        found = await asyncio.gather(*(spans_of(name, host) for name, host in hosts.items()))
        return dict(zip(hosts, found, strict=True))

    def hosts(self) -> dict[str, Any]:
        """The Ray handle of every actor, by name."""
        learner = self.maybe_learner.hosts if self.maybe_learner is not None else {}
        return {**learner} | {
            member.name: member.host
            for pool in (self.rollout, self.retriever, self.judge)
            for member in pool.actors.members
        }

    async def watch_losses(self) -> None:
        """Wait for ever. Raises InfrastructureError once a pool has no actor left for good."""
        pools = (self.rollout, self.retriever, self.judge)
        async with asyncio.TaskGroup() as tasks:
            for pool in pools:
                tasks.create_task(pool.actors.watch_losses())

    def pools(self) -> Mapping[str, tuple[Any, int]]:
        """Each pool by name, with its number of actors."""
        config = self.config
        pools: dict[str, tuple[Any, int]] = {
            "rollout": (self.rollout, config.rollout.num_actors),
            "retriever": (self.retriever, config.retriever.num_actors),
            "judge": (self.judge, config.judge.num_actors),
        }
        if self.maybe_learner is not None:
            pools["learner"] = (self.maybe_learner, config.learner.num_actors)
        return pools


@asynccontextmanager
async def open_stack(
    config: GleanerConfig,
    *,
    learner: bool = True,
    life: int = 0,
    on_event: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[Stack]:
    """Start everything and wait until it is ready; stop everything afterwards, come what may.
    ``life`` counts the resumptions of a run: its engines must not sample the same again.

    Raises UserError for resources that are not there and for inputs that an actor refuses,
    InfrastructureError for an actor that is not ready by its deadline.
    """
    began = time.monotonic()
    learner_config = config.learner if learner else replace(config.learner, num_actors=0)
    check_gpu_memory(config)
    plan = plan_placement(config.rollout, config.retriever, config.judge, learner_config)
    with running_cluster(config.cluster, plan) as cluster:
        on_event(f"Ray is up ({'local' if cluster.is_local else cluster.address}); pools start")
        async with AsyncExitStack() as exits:
            stack = await _start_pools(
                config, cluster, exits, with_learner=learner, life=life, on_event=on_event
            )
            on_event(f"all pools are ready after {time.monotonic() - began:.0f} s")
            yield stack


@asynccontextmanager
async def open_learner(config: GleanerConfig) -> AsyncIterator[LearnerGroup]:
    """The learner group alone, on a cluster of its own or the one that the configuration names.

    Raises what `open_stack` raises.
    """
    plan = plan_placement(
        replace(config.rollout, num_actors=0),
        replace(config.retriever, num_actors=0),
        replace(config.judge, num_actors=0),
        config.learner,
    )
    with running_cluster(config.cluster, plan) as cluster:
        async with AsyncExitStack() as exits:
            group = await _start_learner(config, cluster)
            exits.push_async_callback(group.stop)
            yield group


def check_open_judge(config: GleanerConfig) -> None:
    """What `open_judge` needs is there: files, and the packages of a model that is loaded here.
    Raises UserError."""
    judge = replace(config.judge, canaries="")  # a judge alone has no canaries
    check_judge(judge)
    for model in judge_models(judge):
        check_judge(model)
        check_builds("gpu" if model.num_gpus > 0 else "cpu")


@asynccontextmanager
async def open_judge(config: GleanerConfig) -> AsyncIterator[Judge]:
    """One judge in this process, without Ray: ready, and closed afterwards. The whole budget is
    its own.

    Raises UserError for a judge that cannot be made, InfrastructureError for one that does not
    answer or is not loaded and ready by ``judge.start_timeout_s``.
    """
    judge_config = replace(config.judge, num_actors=1)
    os.environ.update(judge_environment(judge_config))
    judge: Judge | None = None
    try:
        try:
            async with asyncio.timeout(judge_config.start_timeout_s):
                judge = await _in_a_thread(lambda: _make_judge(judge_config))
                await judge.ready()
        except TimeoutError:
            raise LateError(
                f"the judge was not ready after {judge_config.start_timeout_s:.0f} s "
                "(judge.start_timeout_s)"
            ) from None
        yield judge
    finally:
        if judge is not None:
            await judge.close()


def _make_judge(config: JudgeConfig) -> Judge:
    """Raises UserError for a model that cannot be loaded."""
    try:
        return Judge(config)
    except (OSError, ValueError, KeyError) as error:  # of transformers: files that are no model
        models = [model.model for model in judge_models(config)]
        if not models:
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"judge.model={' or '.join(models)} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


async def _in_a_thread(make: Callable[[], _T]) -> _T:
    """What ``make`` returns or raises. Its thread is a daemon: a caller that gives up need not wait
    for it, not even at the end of the process (as `asyncio.to_thread` would)."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if made.cancelled():
            return
        if error is not None:
            made.set_exception(error)
        else:
            made.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = make()
        except BaseException as raised:  # the caller's to handle
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="make-judge", daemon=True).start()
    return await made


async def _start_pools(
    config: GleanerConfig,
    cluster: Cluster,
    exits: AsyncExitStack,
    *,
    with_learner: bool,
    life: int,
    on_event: Callable[[str], None],
) -> Stack:
    async def judge() -> RayJudgePool:
        actors = await _start(_judge_spec(config), cluster, exits)
        return RayJudgePool(actors, config.judge.groups_at_once)

    async def retriever_then_rollout() -> tuple[RayRetrieverPool, ActorPool]:
        retriever = RayRetrieverPool(
            await _start(retriever_spec(config), cluster, exits),
            config.retriever.shards,
            partial=config.retriever.degraded == "partial",
        )
        spec = _rollout_spec(
            config,
            search=retriever.search_from_actors(
                deadline_s=_SEARCH_SHARE * config.rollout.request_timeout_s
            ),
            judge=(await judging).judge_from_actors(by_round=judges_by_round(config.judge))
            if config.judge.early
            else None,
            transport=cluster.plan.transport,
            life=life,
        )
        return retriever, await _start(spec, cluster, exits)

    async def learner() -> RecoveringLearner | None:
        if not with_learner:
            return None
        recovering = RecoveringLearner(
            await _start_learner(config, cluster),
            lambda: _start_learner(config, cluster),
            max_restarts=config.learner.max_restarts,
            on_event=on_event,
        )
        exits.push_async_callback(recovering.stop)
        return recovering

    try:
        async with asyncio.TaskGroup() as tasks:
            judging = tasks.create_task(judge())
            searching = tasks.create_task(retriever_then_rollout())
            learning = tasks.create_task(learner())
    except* GleanerError as errors:
        raise first_error(errors) from None
    retriever, engines = searching.result()
    group = learning.result()
    publisher = None
    if group is not None:
        publisher = open_publisher(
            group,
            engines,
            policy=config.policy,
            transport=cluster.plan.transport,
            timeout_s=config.trainer.publish_timeout_s,
        )
    return Stack(
        rollout=RayRolloutPool(engines),
        retriever=retriever,
        judge=judging.result(),
        config=config,
        maybe_learner=group,
        maybe_publisher=publisher,
    )


async def _start(spec: PoolSpec, cluster: Cluster, exits: AsyncExitStack) -> ActorPool:
    pool = await ActorPool.start(spec, cluster.placements(spec.name))
    exits.push_async_callback(pool.stop)
    return pool


async def _start_learner(config: GleanerConfig, cluster: Cluster) -> LearnerGroup:
    return await LearnerGroup.start(
        learner_job(config), placements=cluster.placements("learner"), health=_health(config)
    )


def learner_job(config: GleanerConfig) -> LearnerJob:
    """What the learner's ranks train."""
    return LearnerJob(
        config.learner,
        objective=build_algorithm(config.algorithm, config.correction).objective,
        model_path=config.policy.path,
        temperature=config.rollout.temperature,
        total_steps=config.trainer.steps,
        minibatches_per_step=config.trainer.minibatches_per_step,
        seed=config.trainer.seed,
        gpus_per_engine=config.rollout.tensor_parallel_size,
    )


def _health(config: GleanerConfig) -> Health:
    return Health(
        interval_s=config.cluster.health_interval_s, timeout_s=config.cluster.health_timeout_s
    )


def _rollout_spec(
    config: GleanerConfig,
    *,
    search: RemoteSearch,
    judge: RemoteJudge | None,
    transport: str,
    life: int,
) -> PoolSpec:
    rollout = config.rollout
    seed = config.trainer.seed * 1000 + life * 100
    shared = {
        "policy": config.policy,
        "protocol": config.protocol,
        "rollout": rollout,
        "score": OutcomeReward(no_answer_reward=config.algorithm.no_answer_reward),
        "search": search,
        "judge": judge,
        "transport": transport,
    }
    return PoolSpec(
        name="rollout",
        factory=RolloutActor,
        members=[{**shared, "seed": seed + i} for i in range(rollout.num_actors)],
        num_cpus=rollout.threads,
        num_gpus=rollout.num_gpus,
        environment=engine_environment(rollout),
        start_timeout_s=rollout.start_timeout_s,
        request_timeout_s=rollout.request_timeout_s,
        max_retries=rollout.max_retries,
        health=_health(config),
    )


def retriever_spec(config: GleanerConfig) -> PoolSpec:
    """What the retriever pool is made of: each actor with its shard."""
    retriever = config.retriever
    arguments = {"config": retriever, "index": config.task.index, "corpus": config.task.corpus}
    return PoolSpec(
        name="retriever",
        factory=Retriever,
        members=[{**arguments, "shard": i % retriever.shards} for i in range(retriever.num_actors)],
        num_cpus=retriever.threads if retriever.num_gpus else 0,
        num_gpus=retriever.num_gpus,
        environment=_threads(retriever.threads),
        start_timeout_s=retriever.start_timeout_s,
        request_timeout_s=retriever.request_timeout_s,
        max_retries=retriever.max_retries,
        health=_health(config),
        max_restarts=-1,
    )


def _judge_spec(config: GleanerConfig) -> PoolSpec:
    judge = config.judge
    return PoolSpec(
        name="judge",
        factory=Judge,
        members=[{"config": judge}] * judge.num_actors,
        num_cpus=judge.threads if judge.num_gpus else 0,
        num_gpus=judge.num_gpus,
        environment=judge_environment(judge),
        start_timeout_s=judge.start_timeout_s,
        request_timeout_s=judge.request_timeout_s,
        max_retries=judge.max_retries,
        health=_health(config),
        max_restarts=-1,
    )


def _threads(number: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(number), "TOKENIZERS_PARALLELISM": "false"}
