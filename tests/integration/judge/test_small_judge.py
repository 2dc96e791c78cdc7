"""The small judge that is shipped: it judges as its card says, by an engine of ours and by a server
that others wrote."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.judge import Judge
from pipeline.atomic import sha256_of
from pipeline.judging.config import JudgeConfig
from pipeline.judging.traces import LabelledTrace, read_traces
from pipeline.types import Verdict
from tests.support.vllm_server import vllm_server

SHIPPED = Path("assets/judge")
KEY = "sk-of-the-server"
AGREEMENT = 0.85  # of some 200 rounds; the card says more
SETTINGS = {"prompt": "small_v1", "max_tokens": 160, "max_attempts": 2}


@pytest.fixture(scope="module")
def traces() -> list[LabelledTrace]:
    return read_traces(SHIPPED / "canaries.jsonl")[:100]


def agreement(
    traces: Sequence[LabelledTrace], judged: Sequence[Sequence[Verdict | None]]
) -> tuple[float, float]:
    pairs = [
        (label, verdict)
        for trace, verdicts in zip(traces, judged, strict=True)
        for label, verdict in zip(trace.labels, verdicts, strict=True)
    ]
    u = sum(v is not None and v.utility == label.utility for label, v in pairs if label)
    v = sum(v is not None and v.correctness == label.correctness for label, v in pairs if label)
    return u / len(pairs), v / len(pairs)


def test_the_card_is_of_these_weights() -> None:
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"sha256 `([0-9a-f]{64})`", card)
    assert told == sha256_of(SHIPPED / "model.safetensors")


@pytest.mark.parametrize("rounds", ["each", "together"])
def test_the_small_judge_agrees_with_evidence_in_an_engine_of_ours(
    traces: list[LabelledTrace], rounds: str
) -> None:
    async def judged() -> list[tuple[Verdict | None, ...]]:
        judge = Judge(
            JudgeConfig(
                name="vllm", model=str(SHIPPED), rounds=rounds, kv_cache_gib=0.25, **SETTINGS
            )
        )
        try:
            assert await judge.ready()
            return await judge.judge([t.trajectory for t in traces])
        finally:
            await judge.close()

    u, v = agreement(traces, asyncio.run(judged()))
    assert u >= AGREEMENT
    assert v >= AGREEMENT


async def test_the_small_judge_agrees_with_evidence_behind_vllms_own_server(
    traces: list[LabelledTrace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with vllm_server(SHIPPED, name="small", key=KEY, log=tmp_path / "server.log") as url:
        judge = Judge(JudgeConfig(name="openai", model="small", base_url=url, **SETTINGS))
        try:
            assert await judge.ready()
            judged = await judge.judge([t.trajectory for t in traces])
        finally:
            await judge.close()
    u, v = agreement(traces, judged)
    assert u >= AGREEMENT
    assert v >= AGREEMENT
