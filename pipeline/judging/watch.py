"""Watches the judge while a run trains: what it costs, and whether it still judges well.

Actors keep to their shares of a budget, but one that is started again, or with a run that goes on,
begins anew: what the whole run has spent is counted here, every few seconds.

Now and then a *canary* is judged beside the run's own trajectories: a trace whose labels are
known, asked anew every time (no cache answers it). Agreement with the labels over a window is a
metric; below a bound it is an alarm, which warns, takes all weight from the verdicts, or stops the
run.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.errors import InfrastructureError, StoppedError, UserError
from pipeline.judging.chat import Budget
from pipeline.judging.config import JudgeConfig
from pipeline.judging.spending import Spending
from pipeline.judging.traces import LabelledTrace
from pipeline.pools import JudgePool
from pipeline.statistics import wilson
from pipeline.types import Purpose, Trajectory, Verdict

__all__ = ["CanaryWindow", "JudgeWatch"]

log = logging.getLogger(__name__)

#: Of the totals of judge actors, those that are metrics of a step.
_METRICS = (
    "judge/calls",
    "judge/prompt_tokens",
    "judge/cached_tokens",
    "judge/completion_tokens",
    "judge/money",
    "judge/call_s",
    "judge/cache_hits",
    "judge/bad_answers",
    "judge/failed_calls",
    "judge/over_budget",
)
_COUNT_EVERY_S = 5.0
_FEWEST_ROUNDS = 10  # of canaries, before the window is full


class CanaryWindow:
    """The last ``size`` canary rounds with a verdict: whether u and v were those of the labels.

    An agreement below ``bound`` is an alarm; in a window of 10 rounds on that is not yet full, one
    whose 95 % interval (Wilson's) is below it as a whole.
    """

    def __init__(self, size: int, bound: float) -> None:
        self._size, self._bound = size, bound
        self._u: deque[bool] = deque(maxlen=size)
        self._v: deque[bool] = deque(maxlen=size)

    def add(self, verdict: Verdict, label: Verdict) -> None:
        """A round more."""
        self._u.append(_same(verdict.utility, label.utility))
        self._v.append(_same(verdict.correctness, label.correctness))

    @property
    def agreement(self) -> tuple[float, float]:
        """Shares in u and v; NaN where nothing was judged yet."""
        if not self._u:
            return math.nan, math.nan
        return sum(self._u) / len(self._u), sum(self._v) / len(self._v)

    @property
    def rounds(self) -> int:
        """How many there are yet."""
        return len(self._u)

    @property
    def alarm(self) -> bool:
        """Whether the judge is too bad for what was seen to be chance."""
        if self.rounds == self._size:
            return min(self.agreement) < self._bound
        if self.rounds < _FEWEST_ROUNDS:
            return False
        return wilson(min(sum(self._u), sum(self._v)), self.rounds).high < self._bound


def _nothing(trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
    return [(None,) * len(t.search_rounds) for t in trajectories]


def _same(signal: float, label: float) -> bool:
    return (signal >= 0.5) == (label >= 0.5)


class JudgeWatch:
    """A ``JudgePool`` around another. ``canaries`` may be empty: then only costs are watched.
    ``spending`` is what the run has spent before.

    Raises UserError for canaries without a label.
    """

    def __init__(
        self,
        pool: JudgePool,
        config: JudgeConfig,
        canaries: Sequence[LabelledTrace],
        seed: int,
        spending: Spending | None = None,
    ) -> None:
        self._pool, self._config = pool, config
        self._canaries = _endless(canaries, seed)
        if canaries and not any(label is not None for c in canaries for label in c.labels):
            raise UserError(
                f"judge.canaries={config.canaries}: no round in it has a label. Remedy: a file of "
                "labelled traces (python -m pipeline traces makes one)"
            )
        self._until_canary = config.canary_every if canaries else None
        self._window = CanaryWindow(config.canary_window, config.canary_alarm)
        self._alarmed = False
        self._lost_in_a_row = 0
        self._num_canary_rounds = 0
        self._totals: Mapping[str, float] = {}
        self._spending = spending or Spending()
        self._budget = Budget(
            tokens=config.budget_tokens,
            money=config.budget_money,
            of="the whole run",
            degrades=config.on_budget == "degrade",
        )
        self._budget.spend(self._spending.tokens, self._spending.money)
        self._counting = asyncio.Lock()
        self._counted_at = -math.inf
        self._num_over_budget = 0

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """See ``JudgePool``. Nothing has a verdict while an alarm lasts and ``on_canary_alarm`` is
        ``uniform``, or once the budget is spent and ``on_budget`` is ``degrade``. Raises
        StoppedError where an alarm or a spent budget stops the run. What was spent is counted
        before any error that ends a run."""
        try:
            verdicts = await self._judged(trajectories)
        except UserError:
            await self.count_spent()
            raise
        if time.monotonic() >= self._counted_at + _COUNT_EVERY_S:
            await self.count_spent()
        return verdicts

    async def _judged(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        if not self._budget.allows():
            self._num_over_budget += sum(len(t.search_rounds) for t in trajectories)
            return _nothing(trajectories)
        canaries = self._due(len(trajectories))
        if canaries:
            await self._test([next(self._canaries) for _ in range(canaries)])
        if self._alarmed and self._config.on_canary_alarm == "uniform":
            return _nothing(trajectories)
        try:
            verdicts = await self._pool.judge(trajectories)
        except InfrastructureError as error:
            self._count_lost(sum(len(t.search_rounds) for t in trajectories), error)
            raise
        self._lost_in_a_row = 0
        return verdicts

    async def stats(self) -> Mapping[str, float]:
        """Those of the pool."""
        return await self._pool.stats()

    async def metrics(self) -> dict[str, float]:
        """What judging took since the last call, and how the canaries fare: metrics of a step."""
        totals = await self._count()
        since = {}
        for metric in _METRICS:
            name = metric.removeprefix("judge/")
            if name in totals:
                since[metric] = totals[name] - self._totals.get(name, 0.0)
        self._totals = dict(totals)
        if self._num_over_budget:
            since["judge/over_budget"] = since.get("judge/over_budget", 0.0) + self._num_over_budget
            self._num_over_budget = 0
        if self._until_canary is None:
            return since
        rounds, self._num_canary_rounds = self._num_canary_rounds, 0
        u, v = self._window.agreement
        return since | {
            "judge/canary_rounds": float(rounds),
            "judge/canary_u_agreement": u,
            "judge/canary_v_agreement": v,
            "judge/canary_alarm": float(self._window.alarm),
        }

    async def count_spent(self) -> None:
        """Ask the actors what they have spent, and keep it."""
        if self._config.name == "evidence":
            return
        self._counted_at = time.monotonic()
        await self._count()

    async def _count(self) -> Mapping[str, float]:
        """The pool's totals. One asks at a time: totals that come late must not be older ones."""
        async with self._counting:
            totals = await self._pool.stats()
            self._budget.spend(*self._spending.count(totals))
        return totals

    def _count_lost(self, rounds: int, error: InfrastructureError) -> None:
        """A call failed as a whole, after all retries. (Rounds without a verdict in calls that
        succeed are counted by the actors.)"""
        log.warning("no judge answered for %d rounds: %s", rounds, error)
        self._lost_in_a_row += rounds
        limit = self._config.stop_after_failures
        if 0 < limit <= self._lost_in_a_row:
            raise StoppedError(
                f"no judge answered for {self._lost_in_a_row} rounds in a row "
                f"(judge.stop_after_failures); the last time: {error}. Mend it and go on with "
                "resume=auto, or train without a judge: algorithm=grpo"
            ) from error

    def _due(self, judged: int) -> int:
        """How many canaries go with so many trajectories."""
        if self._until_canary is None:
            return 0
        self._until_canary -= judged
        due = 0
        while self._until_canary <= 0:
            self._until_canary += self._config.canary_every
            due += 1
        return due

    async def _test(self, canaries: Sequence[LabelledTrace]) -> None:
        try:
            verdicts = await self._pool.judge([c.trajectory for c in canaries])
        except InfrastructureError as error:
            log.info("canaries were not judged: %s", error)
            return
        for canary, judged in zip(canaries, verdicts, strict=True):
            for verdict, label in zip(judged, canary.labels, strict=True):
                if label is not None and verdict is not None:
                    self._window.add(verdict, label)
                    self._num_canary_rounds += 1
        self._act()

    def _act(self) -> None:
        """An alarm begins, or ends."""
        alarm, before = self._window.alarm, self._alarmed
        self._alarmed = alarm
        if alarm == before:
            return
        u, v = self._window.agreement
        text = (
            f"the judge agrees with the labels of its canaries in {u:.0%} (u) and {v:.0%} (v) of "
            f"the last {self._window.rounds} rounds; judge.canary_alarm is "
            f"{self._config.canary_alarm:.0%}"
        )
        if not alarm:
            log.warning("%s: the alarm is over", text)
        elif self._config.on_canary_alarm == "stop":
            raise StoppedError(
                f"{text}. Audit it (python -m pipeline audit) and mend it, and go on with "
                "resume=auto, or with resume=auto and judge.on_canary_alarm=warn as it is"
            )
        else:
            log.warning("%s (judge.on_canary_alarm=%s)", text, self._config.on_canary_alarm)


def _endless(canaries: Sequence[LabelledTrace], seed: int) -> Iterator[LabelledTrace]:
    """The canaries for ever, each time in another order."""
    for epoch in itertools.count():
        order = list(canaries)
        random.Random(f"canaries {seed} {epoch}").shuffle(order)
        yield from (
            replace(c, trajectory=replace(c.trajectory, purpose=Purpose.CANARY)) for c in order
        )
