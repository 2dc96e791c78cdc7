"""The stall watchdog: nothing moved for too long, so it says which pool holds everything up.

It ends nothing: deadlines and health checks do. It is for the person who looks at a run that stands
still: a line in the log, and the stacks of every process in a file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pipeline.errors import InfrastructureError
from pipeline.trace import Recorder

__all__ = ["WAITING", "Activity", "watch_for_stalls"]

logger = logging.getLogger(__name__)

WAITING = "waiting for groups"  # what the learn loop does when it lacks some

_STATS_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Activity:
    """What the driver is at; each change is a sign of life."""

    learner: str = "starting"  # what the learn loop does, in words
    groups: dict[int, str] = field(default_factory=dict)  # ticket -> pool that has the group
    moved_at: float = field(default_factory=time.monotonic)
    recorder: Recorder = field(default_factory=Recorder)  # what the learn loop did when
    learner_since: float = 0.0

    def learn(self, what: str) -> None:
        """The learn loop begins something else."""
        if self.learner_since:
            self.recorder.add(self.learner, self.learner_since, "learn loop")
        self.learner_since = self.recorder.now()
        self.learner = what
        self.moved_at = time.monotonic()

    def group(self, ticket: int, pool: str | None) -> None:
        """A group goes to ``pool``, or has left them all."""
        if pool is None:
            self.groups.pop(ticket, None)
        else:
            self.groups[ticket] = pool
        self.moved_at = time.monotonic()

    def diagnosis(self, episodes: Mapping[str, int] | None = None) -> str:
        """Which pool holds everything up. ``episodes``: of the groups in rollout, how many wait for
        which pool.

        >>> activity = Activity(learner="waiting for groups")
        >>> activity.group(3, "judge")
        >>> activity.diagnosis()
        'the judge pool holds everything up: the learner is waiting for groups; 1 in judge'
        >>> activity.group(3, "rollout")
        >>> print(activity.diagnosis({"retriever": 6, "rollout": 2}))
        the retriever pool holds everything up: the learner is waiting for groups; 1 in rollout, \
whose episodes wait for: retriever 6, rollout 2
        """
        there = Counter(self.groups.values())
        counts = ", ".join(f"{n} in {pool}" for pool, n in there.most_common()) or "none under way"
        waits = Counter(episodes or {})
        if there["rollout"] and waits:
            counts += ", whose episodes wait for: "
            counts += ", ".join(f"{pool} {n}" for pool, n in waits.most_common())
        if self.learner != WAITING:
            held = "the learner or the engines hold everything up"
        elif there:
            pool = there.most_common(1)[0][0]
            if pool == "rollout" and waits:
                pool = waits.most_common(1)[0][0]
            held = f"the {pool} pool holds everything up"
        else:
            held = "nobody was given work"
        return f"{held}: the learner is {self.learner}; {counts}"


async def watch_for_stalls(
    activity: Activity,
    stall_s: float,
    on_stall: Callable[[str], Awaitable[None]],
    rollout_stats: Callable[[], Awaitable[Mapping[str, float]]],
) -> None:
    """For ever: once nothing has moved for ``stall_s`` seconds, and again after as many more,
    ``on_stall`` is told the diagnosis. 0 seconds: never. ``rollout_stats`` tells what episodes wait
    for."""
    told_at = activity.moved_at
    while stall_s:
        since = max(activity.moved_at, told_at)
        left_s = since + stall_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
            continue
        told_at = time.monotonic()
        idle_s = told_at - activity.moved_at
        episodes = await _episodes(rollout_stats)
        diagnosis = f"nothing has moved for {idle_s:.0f} s; {activity.diagnosis(episodes)}"
        logger.error("%s", diagnosis)
        await on_stall(diagnosis)


async def _episodes(rollout_stats: Callable[[], Awaitable[Mapping[str, float]]]) -> dict[str, int]:
    """How many episodes wait for which pool, as far as the engines say."""
    try:
        async with asyncio.timeout(_STATS_TIMEOUT_S):
            stats = await rollout_stats()
    except (TimeoutError, InfrastructureError):
        return {}
    waits = {
        pool: int(stats.get(f"waiting_{pool}", 0)) for pool in ("rollout", "retriever", "judge")
    }
    return {pool: number for pool, number in waits.items() if number}
