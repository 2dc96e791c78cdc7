"""Asking a judge repeatedly: past the cache, in calls of so many, and what an error leaves."""

import asyncio
import json
from dataclasses import replace

import pytest

from pipeline.commands.audit_output import audit_notes, judge_settings
from pipeline.config import GleanerConfig
from pipeline.errors import InfrastructureError, LateError, UserError
from pipeline.judging.cache import VerdictCache
from pipeline.judging.chat import BudgetError, Reply, Usage
from pipeline.judging.llm_judge import AskingConfig, LLMJudge
from pipeline.judging.prompt import read_prompt
from pipeline.judging.repeats import Asked, ask_judge, verdict_rows
from pipeline.types import Purpose, Verdict
from tests.support.traces import traces

ROUNDS = sum(len(t.labels) for t in traces())


class Counter:
    """A model that says 1 and 0 in turn."""

    model = "counter"

    def __init__(self) -> None:
        self.calls = 0

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    async def complete(self, messages, *, schema, temperature, max_tokens) -> Reply:
        self.calls += 1
        say = {"rationale": "", "utility": self.calls % 2, "correctness": 1}
        return Reply(text=json.dumps(say), prompt_tokens=10, completion_tokens=2)


class LLMPool:
    """A judge pool of one language-model judge in this process."""

    def __init__(self, chat, cache) -> None:
        asking = AskingConfig()
        prompt = read_prompt("criteria_v1")
        self.judge_ = LLMJudge(chat, prompt, asking, Usage(), secret=b"x", cache=cache)

    async def judge(self, trajectories):
        return await self.judge_.judge(trajectories)

    async def stats(self):
        return self.judge_.stats()


class Scripted:
    """A judge that fails or stalls at a given call."""

    def __init__(self, fails_at=0, error=None, stalls=False) -> None:
        self.sizes, self.purposes = [], set()
        self._fails_at, self._error, self._stalls = fails_at, error, stalls

    async def judge(self, trajectories):
        self.sizes.append(len(trajectories))
        self.purposes |= {t.purpose for t in trajectories}
        if len(self.sizes) == self._fails_at:
            if self._stalls:
                await asyncio.sleep(60)
            raise self._error
        return [(Verdict(utility=1, correctness=0),) * len(t.search_rounds) for t in trajectories]

    async def stats(self):
        return {"calls": float(len(self.sizes))}


async def ask(judge, repeats=1, together=2, timeout_s=5.0, on_progress=lambda done: None):
    return await ask_judge(
        judge,
        traces(),
        repeats=repeats,
        together=together,
        timeout_s=timeout_s,
        on_progress=on_progress,
    )


async def test_repeats_are_asked_anew_and_neither_read_nor_write_the_cache(tmp_path):
    cache, chat = VerdictCache(tmp_path / "cache.sqlite"), Counter()
    asked = await ask(LLMPool(chat, cache), repeats=3)
    assert chat.calls == 3 * ROUNDS
    assert len(cache) == 0
    assert [len(repeats) for repeats in asked.verdicts] == [3] * len(traces())
    assert asked.stats["calls"] == 3 * ROUNDS


async def test_a_single_pass_learns_and_is_answered_by_the_cache(tmp_path):
    cache, chat = VerdictCache(tmp_path / "cache.sqlite"), Counter()
    first = await ask(LLMPool(chat, cache))
    calls = chat.calls
    assert 0 < calls <= ROUNDS
    again = await ask(LLMPool(chat, cache))
    assert chat.calls == calls
    assert again.verdicts == first.verdicts
    assert again.stats["cache_hits"] == ROUNDS


async def test_so_many_trajectories_go_in_a_call_and_progress_counts_repeats():
    judge, done = Scripted(), []
    await ask(judge, repeats=2, together=3, on_progress=done.append)
    assert judge.sizes == [3, 2, 3, 2]
    assert done == [3, 5, 8, 10]
    assert judge.purposes == {Purpose.CANARY}


async def test_a_spent_budget_ends_it_with_what_was_judged():
    asked = await ask(Scripted(2, BudgetError("spent")), repeats=2)
    assert isinstance(asked.error, BudgetError)
    assert [len(repeats) for repeats in asked.verdicts] == [1, 1, 0, 0, 0]


async def test_an_error_before_anything_was_judged_is_raised():
    with pytest.raises(UserError, match="a wrong key"):
        await ask(Scripted(1, UserError("a wrong key")))


async def test_a_call_that_takes_too_long_is_an_error_of_infrastructure():
    asked = await ask(Scripted(2, stalls=True), timeout_s=0.05)
    assert isinstance(asked.error, LateError)
    assert isinstance(asked.error, InfrastructureError)
    assert "audit.request_timeout_s" in str(asked.error)


def test_every_verdict_is_a_row_and_a_missing_one_is_null():
    said = Verdict(utility=1, correctness=0, rationale="why")
    some = traces()[:1]
    rows = list(verdict_rows(some, Asked([[(said, None), (None, said)]])))
    assert [(r["round"], r["repeat"], r["utility"], r["rationale"]) for r in rows] == [
        (1, 1, 1.0, "why"),
        (2, 1, None, None),
        (1, 2, None, None),
        (2, 2, 1.0, "why"),
    ]


def test_settings_say_how_the_model_is_reached_and_held_to_its_form(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    judge = replace(
        GleanerConfig().judge,
        name="openai",
        base_url="https://me:secret@host:8000/v1?key=secret",
        structured="json_object",
        dtype="bfloat16",
        max_tokens=99,
        max_attempts=2,
    )
    said = judge_settings(judge)
    assert said["base_url"] == "https://host:8000/v1"
    wanted = {"structured": "json_object", "dtype": "bfloat16", "max_tokens": 99, "max_attempts": 2}
    assert {key: said[key] for key in wanted} == wanted
    members = [{"name": "openai", "base_url": "http://me:secret@other/v1"}]
    ensemble = judge_settings(replace(judge, name="ensemble", members=members))
    assert ensemble["members"] == [{"name": "openai", "base_url": "http://other/v1"}]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://from-the-environment/v1")
    assert judge_settings(replace(judge, base_url=""))["base_url"] == (
        "http://from-the-environment/v1"
    )


def notes(judge, *, labelled_by="human", hits=0, missing=0, error=None, repeats=1):
    config = GleanerConfig()
    config.judge = replace(config.judge, **judge)
    config.audit.repeats = repeats
    numbers = {
        "counts": {"asked": 20, "without_verdict": missing},
        "cost": {"cache_hits": hits},
        "labelled_by": {labelled_by: 3},
    }
    return " | ".join(audit_notes(config, numbers, Asked([[()], []], error=error), traces=2))


def test_repeats_of_a_greedy_model_are_noted_and_those_of_a_sampled_one_are_not():
    assert "temperature 0" in notes({"name": "openai"}, repeats=3)
    assert notes({"name": "openai", "temperature": 0.7}, repeats=3) == ""
    assert notes({"name": "openai"}) == ""
    assert "is a rule" in notes({"name": "evidence"}, repeats=3)
    members = [{"name": "evidence"}, {"name": "vllm", "temperature": 0.0}]
    ensemble = {"name": "ensemble", "temperature": 0.7, "members": members}
    assert "temperature 0" in notes(ensemble, repeats=3)
    sampled = [{"name": "evidence"}, {"name": "vllm"}]
    assert notes({**ensemble, "members": sampled}, repeats=3) == ""


def test_what_weakens_the_numbers_is_noted():
    assert "no evidence" in notes({"name": "evidence"}, labelled_by="evidence")
    mixed = {"name": "ensemble", "members": [{"name": "openai"}, {"name": "evidence"}]}
    assert "a member of this ensemble" in notes(mixed, labelled_by="evidence")
    assert notes(mixed, labelled_by="human") == ""
    others = {"name": "ensemble", "members": [{"name": "openai"}]}
    assert notes(others, labelled_by="evidence") == ""
    rule = {"name": "ensemble", "members": [{"name": "evidence"}]}
    assert "evidence judge itself" in notes(rule, labelled_by="evidence")
    assert "7 of 20 asks" in notes({"name": "openai"}, missing=7)
    assert "judge.cache" in notes({"name": "openai"}, hits=2)
    assert "after 1 of 2 trajectories: spent" in notes(
        {"name": "openai"}, error=BudgetError("spent")
    )
