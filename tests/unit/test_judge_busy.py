"""What a judge's busy seconds are."""

from __future__ import annotations

import asyncio

import pytest

from actors.judge import Judge
from pipeline.judging.config import JudgeConfig
from tests.support.traces import GOOD, NEXT, trajectory_of


async def test_seconds_with_several_calls_under_way_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("actors.judge.time.monotonic", lambda: clock[0])
    judge = Judge(JudgeConfig())
    go = asyncio.Event()

    async def slow(trajectories: object) -> list[object]:
        await go.wait()
        return [(None, None)]

    monkeypatch.setattr(judge._backend, "judge", slow)
    calls = [asyncio.ensure_future(judge.judge([trajectory_of(GOOD, NEXT)])) for _ in range(3)]
    await asyncio.sleep(0)
    clock[0] = 5.0
    go.set()
    await asyncio.gather(*calls)
    clock[0] = 9.0  # idle
    assert (await judge.stats())["busy_s"] == 5.0
