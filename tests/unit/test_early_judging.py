"""``judge.early``: rounds are judged while their episode goes on, and nothing waits for that."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from actors import rollout
from actors.early_judging import EarlyJudging
from actors.judge import Judge
from actors.rollout import RolloutActor
from pipeline.config import PolicyConfig, ProtocolConfig, RolloutConfig
from pipeline.episode.rewards import OutcomeReward
from pipeline.errors import InfrastructureError
from pipeline.judging.chat import Reply, Usage
from pipeline.judging.config import JudgeConfig
from pipeline.judging.ensemble import EnsembleJudge
from pipeline.judging.llm_judge import AskingConfig, LLMJudge
from pipeline.judging.members import judges_by_round
from pipeline.judging.prompt import read_prompt
from pipeline.types import Purpose, RolloutRequest, Sampling, Trajectory, Verdict
from tests.support.scripted import ScriptedPolicy, passage, question
from tests.support.traces import FAILED, GOOD, LATE, NEXT, QUESTION, trajectory_of
from tests.support.words import WordTokenizer

LINES = [
    "<search> capital of Chad </search>",
    "<search> and its mayor </search>",
    "<answer> N'Djamena </answer>",
]


class Judging:
    """An early judge over the rule. It answers when it is told to."""

    def __init__(self, *, by_round: bool = True, fails_on: int = 0) -> None:
        self.by_round, self._fails_on = by_round, fails_on
        self._judge = Judge(JudgeConfig())
        self.asked: list[int] = []  # search rounds of what it was shown
        self.go = asyncio.Event()

    async def judge(self, trajectory: Trajectory) -> tuple[Verdict | None, ...]:
        await self._turn(trajectory)
        return (await self._judge.judge([trajectory]))[0]

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        await self._turn(trajectory)
        return await self._judge.judge_last(trajectory)

    async def _turn(self, trajectory: Trajectory) -> None:
        self.asked.append(len(trajectory.search_rounds))
        await self.go.wait()
        if self.asked[-1] == self._fails_on:
            raise InfrastructureError("the judge is late")


class Player:
    """A rollout actor whose engine says LINES, then waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, judge: Judging) -> None:
        tokenizer = WordTokenizer()
        self.policy = ScriptedPolicy(tokenizer, LINES)

        class Engine:
            failure = None

            def __init__(self, *args: Any, **options: Any) -> None: ...

            async def generate(engine, prompt: list[int], sampling: Sampling, *stops: Any) -> Any:
                await asyncio.sleep(0)  # who else can go on goes on
                return await self.policy.generate(prompt, sampling)

        monkeypatch.setattr(rollout, "Engine", Engine)
        monkeypatch.setattr(rollout, "_load_tokenizer", lambda path: tokenizer)

        async def search(query: str, top_k: int) -> tuple[Any, ...]:
            return (passage("1"),)

        self.actor = RolloutActor(
            policy=PolicyConfig(path="", max_model_len=500),
            protocol=ProtocolConfig(),
            rollout=RolloutConfig(),
            score=OutcomeReward(),
            search=search,
            seed=0,
            judge=judge,
        )

    def play(self, purpose: Purpose = Purpose.TRAIN) -> asyncio.Task[Any]:
        request = RolloutRequest(
            question=question(), group_id=1, num_samples=1, admission_version=0,
            sampling=Sampling(), purpose=purpose,
        )  # fmt: skip
        return asyncio.create_task(self.actor.rollout(request))


async def ticks() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_each_round_is_asked_about_at_once_and_generation_waits_for_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Judging()
    player = Player(monkeypatch, judge)
    seen: list[int] = []
    generate = player.policy.generate

    async def noting(*args: Any) -> Any:
        seen.append(len(judge.asked))
        return await generate(*args)

    monkeypatch.setattr(player.policy, "generate", noting)
    playing = player.play()
    await ticks()
    assert (judge.asked, seen) == ([1, 2], [0, 1, 2])
    assert len(player.policy.seen) == 3  # the episode is over: only verdicts are missing
    assert player.actor._waiting == {"rollout": 0, "retriever": 0, "judge": 1}
    judge.go.set()
    (trajectory,) = (await playing).trajectories
    (expected,) = await Judge(JudgeConfig()).judge([trajectory])
    assert tuple(r.verdict for r in trajectory.search_rounds) == expected


async def test_a_judge_of_whole_trajectories_is_asked_when_one_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Judging(by_round=False)
    judge.go.set()
    (trajectory,) = (await Player(monkeypatch, judge).play()).trajectories
    assert judge.asked == [2]
    assert all(r.verdict for r in trajectory.search_rounds)


@pytest.mark.parametrize(("by_round", "judged"), [(True, [True, False]), (False, [False, False])])
async def test_what_the_judge_fails_to_answer_is_left_to_its_group(
    monkeypatch: pytest.MonkeyPatch, by_round: bool, judged: list[bool]
) -> None:
    judge = Judging(by_round=by_round, fails_on=2)
    judge.go.set()
    group = await Player(monkeypatch, judge).play()
    (trajectory,) = group.trajectories
    assert [r.verdict is not None for r in trajectory.search_rounds] == judged
    assert group.errors == ()


async def test_an_evaluation_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judging()
    await Player(monkeypatch, judge).play(Purpose.EVALUATE)
    assert judge.asked == []


async def test_an_episode_that_is_aborted_asks_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    playing = Player(monkeypatch, Judging()).play()
    await ticks()
    before = len(asyncio.all_tasks())
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert len(asyncio.all_tasks()) == before - 4  # group, episode, two verdicts


class Chat:
    """A model whose answer depends on what it is asked, and on nothing else."""

    model = "chat"

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    async def complete(self, messages: Any, **how: Any) -> Reply:
        utility = sum(map(ord, messages[-1]["content"])) % 2
        say = {"rationale": "", "utility": utility, "correctness": 1 - utility}
        return Reply(text=json.dumps(say), prompt_tokens=1, completion_tokens=1)


def model() -> LLMJudge:
    return LLMJudge(Chat(), read_prompt("criteria_v1"), AskingConfig(), Usage(), secret=b"x")


@pytest.mark.parametrize("kind", ["evidence", "model", "ensemble"])
async def test_a_rounds_verdict_is_that_of_the_whole_trajectory(kind: str) -> None:
    judge = Judge(JudgeConfig(flip_probability=0.5))
    if kind == "model":
        judge._backend = model()
    elif kind == "ensemble":
        judge._backend = EnsembleJudge([judge._backend, model()], "mean")
    for number in range(8):
        whole = replace(trajectory_of(FAILED, GOOD, NEXT, LATE), group_id=number)
        early = EarlyJudging(Direct(judge), QUESTION, group_id=number, sample_id=whole.sample_id)
        for ended in range(1, 5):
            early.searched(whole.rounds[:ended])
        assert await early.judged(whole.without_verdicts()) == whole.with_verdicts(
            (await judge.judge([whole]))[0]
        )
    assert (await judge.stats())["rounds"] == 8 * 4 * 2


class Direct:
    """A judge of this process as engines see it."""

    by_round = True

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    async def judge(self, trajectory: Trajectory) -> tuple[Verdict | None, ...]:
        return (await self._judge.judge([trajectory]))[0]

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        return await self._judge.judge_last(trajectory)


def test_one_member_that_reads_whole_trajectories_decides() -> None:
    together = {"name": "openai", "model": "m", "rounds": "together"}
    assert judges_by_round(JudgeConfig())
    assert judges_by_round(JudgeConfig(name="ensemble", members=[{"name": "evidence"}]))
    members = [{"name": "evidence"}, together]
    assert not judges_by_round(JudgeConfig(name="ensemble", members=members))
    assert not judges_by_round(JudgeConfig(name="vllm", rounds="together"))
