"""A server that answers as it is told, and judges that ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from actors.judge import Judge
from pipeline.judging.config import JudgeConfig
from tests.support.judge_server import JudgeServer

KEY = "sk-test-0123456789abcdef"
MakeJudge = Callable[..., Judge]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in the environment and nothing else of OpenAI's."""
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
async def make_judge(server: JudgeServer) -> AsyncIterator[MakeJudge]:
    """Judges that ask the server; keyword arguments change their settings."""
    made: list[Judge] = []

    def make(**changes: Any) -> Judge:
        settings = {"model": "judge", "base_url": server.base_url, "call_timeout_s": 30.0}
        made.append(Judge(JudgeConfig(**{"name": "openai", **settings, **changes})))
        return made[-1]

    yield make
    for judge in made:
        await judge.close()
