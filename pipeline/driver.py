"""The driver: the one place that knows the whole loop. It talks to protocols only.

    questions --> admit --> RolloutPool --> JudgePool --> TrajectoryBuffer --> credit --> Learner
                    ^                                           |                           |
                    +------ slots come back, version v+1 -------+------ WeightPublisher <---+

| loop  | consumes             | waits for                       | unblocked by               |
| ----- | -------------------- | ------------------------------- | -------------------------- |
| admit | questions            | a free slot                     | a publish, a filtered group|
| roll  | one admitted group   | its episodes, then its verdicts | engines, judges            |
| learn | groups in their order| ``groups_per_step`` finished    | the roll loops             |
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from pipeline.buffer import Admission, BufferCounts, TakingOrder, TrajectoryBuffer
from pipeline.config import BufferConfig, TrainerConfig
from pipeline.credit import Algorithm, CreditResult
from pipeline.curriculum import Curriculum
from pipeline.errors import GleanerError, InfrastructureError, first_error
from pipeline.exposure import Exposure
from pipeline.journal import Journal, JournalEntry
from pipeline.ledger import Ledger
from pipeline.pools import JudgePool, Learner, PublishReport, RolloutPool, WeightPublisher
from pipeline.trace import Span
from pipeline.types import Group, Question, RolloutRequest, Sample, Sampling, Trajectory
from pipeline.watchdog import WAITING, Activity, watch_for_stalls

__all__ = ["Driver", "Start", "StepResult", "judge_group"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run that was resumed goes on."""

    version: int  # of the weights that learner and engines hold
    reissue: Mapping[int, Question] = field(default_factory=dict)  # queued groups, by ticket
    elapsed_s: float = 0.0  # of training, before


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """All that is known of one train step, for metrics, progress and the report."""

    step: int  # 1-based; the step makes weight version `step`
    groups: Sequence[Group]  # trained in this step, verdicts inside
    credits: Sequence[CreditResult]  # one a mini-batch
    learner: dict[str, float]
    publish: PublishReport
    counts: BufferCounts
    depth: int  # finished groups left in the buffer when the step began
    wait_s: float  # the learner waited for groups
    buffer_wait_s: float  # the groups waited for the learner, mean
    step_s: float  # from one publish to the next
    elapsed_s: float  # since training began, without what ``on_step`` took
    finished: Sequence[Group] = field(default_factory=tuple)  # all groups that ended in this step
    skipped: int = 0  # questions that the curriculum passed over, since the last step
    wasted_verdicts: int = 0  # of rounds judged early that no algorithm asked for, in this step
    judge_wait_s: float = 0.0  # the learner waited, and only judges had what it lacked
    judge: Mapping[str, float] = field(default_factory=dict)  # its costs in this step

    @property
    def start_version(self) -> int:
        """The version that this step's update started from."""
        return self.step - 1


class Driver:
    """Runs admission, rollouts and training until ``trainer.steps`` or ``trainer.minutes``.

    ``questions`` are those of new groups. With ``start`` the run goes on there, with what the
    ledger holds. With ``deterministic_seed`` (and staleness 0) groups are played in waves, while
    the learner waits: what happens then depends on nothing but questions, weights and that seed.
    ``watch_losses`` raises where the run cannot go on, for a pool is lost.
    """

    def __init__(
        self,
        *,
        rollout: RolloutPool,
        judge: JudgePool,
        learner: Learner,
        publisher: WeightPublisher,
        algorithm: Algorithm,
        questions: Curriculum,
        sampling: Sampling,
        trainer: TrainerConfig,
        buffer: BufferConfig,
        ledger: Ledger,
        journal: Journal,
        on_step: Callable[[StepResult], Awaitable[None]],
        start: Start | None = None,
        deterministic_seed: int | None = None,
        on_stall: Callable[[str], Awaitable[None]] | None = None,
        watch_losses: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._rollout, self._judge, self._learner = rollout, judge, learner
        self._publisher, self._algorithm, self._questions = publisher, algorithm, questions
        self._sampling, self._trainer, self._config = sampling, trainer, buffer
        self._on_step, self._journal, self._on_stall = on_step, journal, on_stall
        self._watch_losses = watch_losses
        self._activity = Activity()
        self._wave_seed = deterministic_seed
        self._exposed = Exposure(self._activity, lambda: self._buffer.lacking(), pool="judge")
        self._buffer = TrajectoryBuffer(
            groups_per_step=buffer.groups_per_step,
            max_staleness=buffer.max_staleness,
            ledger=ledger,
            order=cast(TakingOrder, buffer.order),
            group_size=buffer.group_size,
            oversample=buffer.oversample,
        )
        if start is not None:
            self._buffer.restore(start.version)
        self._start = start or Start(version=0)
        self._reissue = deque(self._start.reissue.items())
        self._wasted_verdicts = 0
        self._filtered_in_a_row = self._failed_in_a_row = 0
        self._finished: list[Group] = []
        self._rolling: set[asyncio.Task[None]] = set()

    def spans(self) -> list[Span]:
        """What the learn loop did when."""
        return self._activity.recorder.spans()

    async def run(self) -> None:
        """Train. Raises GleanerError (alone) where a loop cannot go on."""
        try:
            async with asyncio.TaskGroup() as tasks:
                helpers = []
                if self._wave_seed is None:
                    helpers.append(tasks.create_task(self._admit(tasks)))
                if self._on_stall is not None:
                    watch = watch_for_stalls(
                        self._activity, self._trainer.stall_s, self._on_stall, self._rollout.stats
                    )
                    helpers.append(tasks.create_task(watch))
                if self._watch_losses is not None:
                    helpers.append(tasks.create_task(self._watch_losses()))
                await self._learn()
                self._stop(helpers)
        except* GleanerError as errors:
            raise first_error(errors) from None

    async def _admit(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            task = tasks.create_task(self._roll(await self._next_request()))
            self._rolling.add(task)
            task.add_done_callback(self._rolling.discard)

    def _request(self, question: Question, admission: Admission) -> RolloutRequest:
        self._moved(admission.ticket, "rollout")
        return RolloutRequest(
            question=question,
            group_id=admission.ticket,
            num_samples=self._config.group_size + admission.extra,
            keep=self._config.group_size,
            admission_version=admission.version,
            sampling=self._sampling,
        )

    async def _play_waves(self) -> None:
        """Fill all slots, play them together, until a step's groups are finished."""
        while self._buffer.depth < self._config.groups_per_step:
            requests = []
            while self._buffer.free_slots:
                requests.append(await self._next_request())
            seed = f"{self._wave_seed} {requests[0].group_id}"
            groups = await self._rollout.rollout_wave(requests, zlib.crc32(seed.encode()))
            for group in groups:
                self._moved(group.group_id, "judge")
            for group in groups:  # one after the other, in the order of their tickets
                await self._finish(group)

    async def _next_request(self) -> RolloutRequest:
        if self._reissue:
            ticket, question = self._reissue.popleft()
            return self._request(question, await self._buffer.readmit(ticket))
        await self._buffer.wait_for_slot()  # what is learned until then counts in the choice
        question = self._questions.next(self._buffer.counts.admitted)
        return self._request(question, await self._buffer.admit(question.id))

    async def _roll(self, request: RolloutRequest) -> None:
        ticket = request.group_id
        try:
            group = await self._rollout.rollout(request)
        except InfrastructureError as error:
            group = Group(
                group_id=ticket,
                question=request.question,
                trajectories=(),
                admission_version=request.admission_version,
                errors=(str(error),),
            )
        await self._finish(group)

    async def _finish(self, group: Group) -> None:
        """A group was played: judge and keep it, filter it, or count it as failed."""
        ticket = group.group_id
        self._finished.append(group)
        self._moved(ticket, "judge")
        if len(group.trajectories) < 2:  # nothing left to compare with
            await self._fail(ticket, group)
            self._moved(ticket, None)
            return
        self._failed_in_a_row = 0
        has_signal = self._algorithm.has_signal(group)
        self._questions.ended(ticket, group.question, filtered=not has_signal)
        if not has_signal:
            self._wasted_verdicts += _num_verdicts(group)
            await self._filter(ticket)
        else:
            self._filtered_in_a_row = 0
            await self._buffer.put(ticket, await self._judged(group))
        self._moved(ticket, None)

    async def _fail(self, ticket: int, group: Group) -> None:
        self._failed_in_a_row += 1
        limit = 2 * self._buffer.num_slots
        why = group.errors[0] if group.errors else "no reason was given"
        if self._failed_in_a_row >= limit:
            raise InfrastructureError(
                f"{limit} groups in a row were lost to failing engines or retrievers; "
                f"the last: {why}"
            )
        await self._buffer.fail(ticket, why)

    async def _filter(self, ticket: int) -> None:
        self._filtered_in_a_row += 1
        limit = self._config.max_consecutive_filtered
        if self._filtered_in_a_row >= limit:
            raise GleanerError(
                f"{limit} groups in a row had no reward variance: the policy always or never "
                "solves these questions. Choose easier or harder ones, raise "
                "rollout.temperature or buffer.group_size, or raise "
                "buffer.max_consecutive_filtered"
            )
        await self._buffer.filter(ticket)

    async def _judged(self, group: Group) -> Group:
        """The group with verdicts where the algorithm needs them; a failed judge leaves None."""
        asked = set(self._algorithm.to_judge(group))
        self._wasted_verdicts += _num_verdicts(group, without=asked)
        try:
            return await judge_group(self._judge, self._algorithm, group)
        except InfrastructureError as error:
            logger.info("group %d stays without verdicts: %s", group.group_id, error)
            return group  # counted by the algorithm as failed

    def _learns(self, what: str) -> None:
        """The learn loop begins something else."""
        self._activity.learn(what)
        self._exposed.update()

    def _moved(self, ticket: int, pool: str | None) -> None:
        """A group goes to ``pool``, or has left them all."""
        self._activity.group(ticket, pool)
        self._exposed.update()

    async def _learn(self) -> None:
        published = time.monotonic()
        began = published - self._start.elapsed_s
        durations: deque[float] = deque(maxlen=3)
        apart_s = 0.0  # spent in ``on_step``, e.g. on an evaluation: no training time
        for step in range(self._start.version + 1, self._trainer.steps + 1):
            waited = time.monotonic()
            self._learns(WAITING)
            if self._wave_seed is not None:
                await self._play_waves()
            groups = await self._buffer.take()
            wait_s, judge_wait_s = time.monotonic() - waited, self._exposed.take()
            depth = self._buffer.depth
            self._check_staleness(groups)
            self._learns(f"at train step {step}")
            credits, learner = await self._update(step, groups)
            self._learns(f"publishing version {step}")
            publish = await self._publisher.publish(step)
            await asyncio.to_thread(self._journal.published, step, publish.digest)
            await self._buffer.release()
            now = time.monotonic() - apart_s
            finished, self._finished = self._finished, []
            wasted, self._wasted_verdicts = self._wasted_verdicts, 0
            skipped, self._questions.skipped = self._questions.skipped, 0
            self._learns(f"evaluating or saving after step {step}")
            await self._on_step(
                StepResult(
                    step=step,
                    groups=groups,
                    credits=credits,
                    learner=learner,
                    publish=publish,
                    counts=replace(self._buffer.counts),
                    depth=depth,
                    wait_s=wait_s,
                    buffer_wait_s=self._buffer.wait_s,
                    step_s=now - published,
                    elapsed_s=now - began,
                    finished=finished,
                    skipped=skipped,
                    wasted_verdicts=wasted,
                    judge_wait_s=judge_wait_s,
                )
            )
            apart_s += time.monotonic() - apart_s - now
            durations.append(now - published)
            published = now
            limit_s = 60 * self._trainer.minutes
            if limit_s and now - began + max(durations) > limit_s:
                break  # another step like these would end too late

    async def _update(
        self, step: int, groups: Sequence[Group]
    ) -> tuple[list[CreditResult], dict[str, float]]:
        """``minibatches_per_step`` optimizer steps, and their metrics as one."""
        minibatches = _split(groups, self._trainer.minibatches_per_step)
        credits = [await self._credited(m) for m in minibatches]
        batches = [await self._with_logprobs(c.samples, len(minibatches)) for c in credits]
        metrics = []
        for i, (samples, credit) in enumerate(zip(batches, credits, strict=True)):
            entry = JournalEntry(
                step=step,
                minibatch=i,
                num_minibatches=len(batches),
                version=self._buffer.version,
                normaliser=credit.normaliser,
                samples=samples,
                groups=[group.group_id for group in minibatches[i]],
            )
            await asyncio.to_thread(self._journal.record, entry)
            metrics.append(await self._learner.train_step(samples, entry.normaliser, entry.version))
        names = dict.fromkeys(name for m in metrics for name in m)
        return credits, {n: _joined(n, [m[n] for m in metrics if n in m]) for n in names}

    async def _credited(self, groups: Sequence[Group]) -> CreditResult:
        """Credit, with the reference policy's opinion where the reward has a KL term."""
        asked = self._algorithm.reference_samples(groups)
        if not asked:
            return self._algorithm.credit(groups)
        return self._algorithm.credit(groups, await self._learner.logprobs(asked, "reference"))

    async def _with_logprobs(
        self, samples: Sequence[Sample], num_minibatches: int
    ) -> Sequence[Sample]:
        """Samples with the reference's and the proximal policy's log-probabilities, if needed.

        With one optimizer step the proximal policy is the one that computes the loss: the
        learner then takes it from the same forward pass.
        """
        objective = self._algorithm.objective
        if objective.loss_kl_coef > 0:
            reference = await self._learner.logprobs(samples, "reference")
            samples = [replace(s, ref_logprobs=r) for s, r in zip(samples, reference, strict=True)]
        if objective.recompute_proximal and num_minibatches > 1:
            proximal = await self._learner.logprobs(samples, "current")
            samples = [
                replace(s, proximal_logprobs=p) for s, p in zip(samples, proximal, strict=True)
            ]
        return samples

    def _check_staleness(self, groups: Sequence[Group]) -> None:
        for group in groups:
            staleness = self._buffer.version - group.admission_version
            if staleness > self._config.max_staleness:
                raise AssertionError(
                    f"group {group.group_id} has staleness {staleness} at a bound of "
                    f"{self._config.max_staleness}: the buffer's order is broken"
                )

    def _stop(self, helpers: Sequence[asyncio.Task[None]]) -> None:
        """End admission, the watchdog and the rollouts that nobody will train on."""
        for task in (*helpers, *self._rolling):
            task.cancel()


async def judge_group(judge: JudgePool, algorithm: Algorithm, group: Group) -> Group:
    """The group with verdicts where the algorithm needs them, and nowhere else. Those that were
    given early (``judge.early``) are not asked for again."""
    chosen = set(algorithm.to_judge(group))
    trajectories = [
        t if i in chosen else t.without_verdicts() for i, t in enumerate(group.trajectories)
    ]
    missing = [i for i in sorted(chosen) if not _is_judged(trajectories[i])]
    if missing:
        verdicts = await judge.judge([trajectories[i] for i in missing])
        for i, verdict in zip(missing, verdicts, strict=True):
            trajectories[i] = trajectories[i].with_verdicts(verdict)
    return replace(group, trajectories=tuple(trajectories))


def _is_judged(trajectory: Trajectory) -> bool:
    return all(r.verdict is not None for r in trajectory.search_rounds)


def _num_verdicts(group: Group, without: Collection[int] = ()) -> int:
    """Search rounds with a verdict, but for those of the trajectories ``without``."""
    others = [t for i, t in enumerate(group.trajectories) if i not in without]
    return sum(r.verdict is not None for t in others for r in t.search_rounds)


def _joined(name: str, values: Sequence[float]) -> float:
    """One number for several optimizer steps: totals add up, maxima stay, the rest is averaged."""
    if name in ("update_s", "trained_tokens"):
        return sum(values)
    return max(values) if name.endswith("_max") else sum(values) / len(values)


def _split(groups: Sequence[Group], parts: int) -> list[Sequence[Group]]:
    """``parts`` runs of nearly equal length, in order, none empty."""
    parts = min(parts, len(groups))
    bounds = [round(i * len(groups) / parts) for i in range(parts + 1)]
    return [groups[a:b] for a, b in itertools.pairwise(bounds)]
