"""The `openai` judge against a real server: vLLM's own, with a tiny random model.

Such a model writes a verdict only because the server holds it to the schema; that its rationale
ends, and with it the answer, is due to the lengths in the schema.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.judge import Judge
from pipeline.errors import UserError
from pipeline.judging.config import JudgeConfig
from pipeline.types import Verdict
from tests.support.vllm_server import vllm_server
from tests.support.worded_trajectory import trajectory

KEY = "sk-of-the-server"
# The model reads letter by letter: everything is short. An answer is some 70 characters around a
# rationale of 12, of which an escaped one takes six.
PROMPT = """\
version: tiny
system: ""
each: |-
  {mark}
  {trace}
  {mark}
  Round {round}.
together: |-
  {mark}
  {trace}
  {mark}
  All {rounds}.
question_chars: 40
reasoning_chars: 40
query_chars: 20
passage_chars: 40
rationale_chars: 12
mark_bytes: 4
"""
MAX_TOKENS = 160
TRACES = [trajectory("x", "gold so", "dust", "gold"), trajectory("y", "dust")]


@pytest.fixture(scope="module")
def server(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's base URL."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with vllm_server(tiny_policy, name="tiny", key=KEY, log=log) as url:
        yield url


@pytest.fixture
async def make_judge(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Judge]]:
    monkeypatch.setenv("VLLM_KEY", KEY)
    (tmp_path / "tiny.yaml").write_text(PROMPT)
    settings = {
        "name": "openai",
        "model": "tiny",
        "base_url": server,
        "api_key_env": "VLLM_KEY",
        "prompt": str(tmp_path / "tiny.yaml"),
        "max_tokens": MAX_TOKENS,
        "max_attempts": 1,
    }
    made: list[Judge] = []

    def make(**changes: Any) -> Judge:
        made.append(Judge(JudgeConfig(**{**settings, **changes})))
        return made[-1]

    yield make
    for judge in made:
        await judge.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rounds", ["each", "together"])
async def test_a_random_model_gives_well_formed_verdicts(
    make_judge: Callable[..., Judge], rounds: str, temperature: float
) -> None:
    judge = make_judge(rounds=rounds, temperature=temperature)
    assert await judge.ready()
    judged = await judge.judge(TRACES)
    assert [len(verdicts) for verdicts in judged] == [3, 1]
    for verdict in [v for verdicts in judged for v in verdicts]:
        assert isinstance(verdict, Verdict)
        assert verdict.utility in (0, 1)
        assert verdict.correctness in (0, 1)
        assert len(verdict.rationale) <= 12
    stats = await judge.stats()
    calls = 4 if rounds == "each" else 2
    assert (stats["calls"], stats["rounds"], stats["failures"]) == (calls, 4, 0)
    assert 100 * calls < stats["prompt_tokens"] < 1000 * calls
    assert 20 * 4 < stats["completion_tokens"] <= MAX_TOKENS * 4


async def test_without_a_schema_the_same_model_gives_none(
    make_judge: Callable[..., Judge],
) -> None:
    """So it is the schema that makes the verdicts above."""
    judge = make_judge(structured="none", max_attempts=2)
    assert await judge.judge(TRACES) == [(None, None, None), (None,)]
    stats = await judge.stats()
    assert (stats["bad_answers"], stats["failures"], stats["calls"]) == (8, 4, 8)


async def test_the_rounds_of_a_trajectory_share_their_history_in_the_servers_cache(
    make_judge: Callable[..., Judge],
) -> None:
    judge = make_judge(concurrency=1)
    await judge.judge(TRACES[:1])
    stats = await judge.stats()
    assert 128 <= stats["cached_tokens"] < stats["prompt_tokens"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "unknown"}, "judge.model=unknown"),
        ({"api_key_env": "NOT_SET"}, "NOT_SET"),
        ({"max_tokens": 5000}, "judge.max_tokens (5000)"),
    ],
)
async def test_what_the_server_refuses_is_the_users_to_mend(
    make_judge: Callable[..., Judge], server: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        await make_judge(**changes).ready()
    assert told in str(caught.value)
    assert server in str(caught.value)


async def test_a_wrong_key_is_told_by_its_variable_alone(
    make_judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_KEY", "sk-of-somebody-else")
    judge = make_judge()
    for asking in (judge.ready(), judge.judge(TRACES)):
        with pytest.raises(UserError, match="VLLM_KEY") as caught:
            await asking
        assert "sk-of-somebody-else" not in str(caught.value)


async def test_a_trace_that_is_too_long_for_the_model_stays_without_verdicts(
    make_judge: Callable[..., Judge],
) -> None:
    judge = make_judge()
    await judge.ready()
    long = trajectory("z", *["dust and gold"] * 12)
    verdicts = (await judge.judge([long]))[0]
    assert verdicts[0] is not None
    assert verdicts[-1] is None
    stats = await judge.stats()
    assert stats["failures"] == verdicts.count(None)
    # Between the two there may be a prompt that leaves no room for a whole answer.
    assert stats["failed_calls"] + stats.get("bad_answers", 0) == stats["failures"]
    assert stats["failed_calls"] >= 2
