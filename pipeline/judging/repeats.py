"""A judge is asked about traces, once or several times over."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.atomic import write_lines
from pipeline.errors import GleanerError, LateError
from pipeline.judging.traces import LabelledTrace
from pipeline.pools import JudgePool
from pipeline.types import Purpose, Trajectory, Verdict

__all__ = ["Asked", "ask_judge", "verdict_rows", "write_verdict_rows"]


@dataclass(slots=True)
class Asked:
    """``verdicts[t][r]`` is what repeat ``r`` said of trace ``t``, one entry a search round; traces
    have fewer repeats, or none, where an ``error`` ended it early. ``seconds`` it took."""

    verdicts: list[list[tuple[Verdict | None, ...]]]
    seconds: float = 0.0
    error: GleanerError | None = None
    stats: dict[str, float] = field(default_factory=dict)


async def ask_judge(
    judge: JudgePool,
    traces: Sequence[LabelledTrace],
    *,
    repeats: int,
    together: int,
    timeout_s: float,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Asked:
    """Have all traces judged ``repeats`` times, ``together`` in a call; ``on_progress`` is told how
    many trajectories, repeats counted one by one, are done.

    With several repeats they go as canaries: no cache answers, none learns. An error once some
    traces are judged ends it, and is in the result. Raises it where none was, and LateError for a
    call that takes longer than ``timeout_s``.
    """
    asked = Asked([[] for _ in traces])
    purpose = Purpose.CANARY if repeats > 1 else Purpose.EVALUATE
    began, done = time.monotonic(), 0
    try:
        for start in [s for _ in range(repeats) for s in range(0, len(traces), together)]:
            some = [replace(t.trajectory, purpose=purpose) for t in traces[start:][:together]]
            judged = await _within(judge, some, timeout_s)
            for place, verdicts in enumerate(judged, start=start):
                asked.verdicts[place].append(tuple(verdicts))
            done += len(some)
            on_progress(done)
    except GleanerError as error:
        if not done:
            raise
        asked.error = error
    asked.seconds = time.monotonic() - began
    asked.stats = dict(await judge.stats())
    return asked


async def _within(
    judge: JudgePool, trajectories: Sequence[Trajectory], timeout_s: float
) -> list[tuple[Verdict | None, ...]]:
    try:
        async with asyncio.timeout(timeout_s):
            return await judge.judge(trajectories)
    except TimeoutError:
        raise LateError(
            f"the judge took more than {timeout_s:.0f} s for {len(trajectories)} trajectories "
            "(audit.request_timeout_s, audit.concurrency)"
        ) from None


def verdict_rows(traces: Iterable[LabelledTrace], asked: Asked) -> Iterator[dict[str, Any]]:
    """One dict a verdict: ``id``, ``round`` and ``repeat`` (from 1), ``utility``, ``correctness``,
    ``rationale``; the last three None where none came."""
    for trace, repeats in zip(traces, asked.verdicts, strict=True):
        for repeat, verdicts in enumerate(repeats, start=1):
            for number, verdict in enumerate(verdicts, start=1):
                yield {
                    "id": trace.id,
                    "round": number,
                    "repeat": repeat,
                    "utility": None if verdict is None else verdict.utility,
                    "correctness": None if verdict is None else verdict.correctness,
                    "rationale": None if verdict is None else verdict.rationale,
                }


def write_verdict_rows(path: Path, traces: Iterable[LabelledTrace], asked: Asked) -> None:
    """The rows as JSON lines, atomically."""
    write_lines(path, (json.dumps(row, ensure_ascii=False) for row in verdict_rows(traces, asked)))
