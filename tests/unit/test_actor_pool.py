"""The pool of Ray actors, over stand-ins for them: what becomes of their warnings."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from actors.pool import ActorPool, Member, PoolSpec


class SlowToTell:
    """Tells what it warned of once, and the first call takes as long as the test wants."""

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self.warnings = SimpleNamespace(remote=self._warnings)
        self._lines = ["out of paper"]

    async def _warnings(self) -> list[str]:
        lines, self._lines = self._lines, []
        if lines:
            self.asked.set()
            await self.go.wait()
        return lines


async def test_warnings_on_their_way_when_the_pool_stops_are_in_our_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("actors.pool._LISTEN_EVERY_S", 0)
    for name in ("kill", "cancel"):
        monkeypatch.setattr(f"ray.{name}", lambda *args, **kwargs: None)
    caplog.set_level("INFO")
    host: Any = SlowToTell()
    pool = ActorPool(
        PoolSpec(
            name="printer", factory=object, members=[{}], num_cpus=0, start_timeout_s=60,
            request_timeout_s=60, max_retries=0,
        )
    )  # fmt: skip
    pool.members = [Member(name="printer-0", host=host, in_service=True)]
    pool._listening = asyncio.create_task(pool._listen())
    await host.asked.wait()
    stopping = asyncio.create_task(pool.stop())
    await asyncio.sleep(0)  # it has told the listener to end
    host.go.set()
    await stopping
    told = [r.getMessage() for r in caplog.records if " warns: " in r.getMessage()]
    assert told == ["printer-0 warns: out of paper"]
