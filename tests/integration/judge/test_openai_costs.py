"""What the `openai` judge may ask: so much at once, so often, for so much, and nothing twice."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.judging import prompt
from pipeline.judging.chat import BudgetError
from pipeline.types import Purpose, Trajectory, Verdict
from tests.integration.judge.conftest import MakeJudge
from tests.support.judge_server import GONE, JudgeServer, completion, refusal, verdict
from tests.support.worded_trajectory import trajectory

GOLD = Verdict(utility=1, correctness=0, rationale="on x query 1")


def many(number: int, text: str = "gold") -> list[Trajectory]:
    return [trajectory(f"t{n}", text) for n in range(number)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; the test's own timeout ends a wait for what does not."""
    while not condition():
        await asyncio.sleep(0.01)


async def test_no_more_calls_are_under_way_than_allowed(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.wait_s = 0.3
    judged = await make_judge(concurrency=3).judge(many(15))
    assert len(server.asked) == 15
    assert server.most_at_once == 3
    assert None not in [v for verdicts in judged for v in verdicts]


async def test_the_limit_of_calls_under_way_holds_over_all_groups(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.wait_s = 0.3
    judge = make_judge(concurrency=2)
    await asyncio.gather(*(judge.judge([t]) for t in many(8)))
    assert server.most_at_once == 2


async def test_calls_a_minute_are_spread_evenly(server: JudgeServer, make_judge: MakeJudge) -> None:
    judging = asyncio.create_task(make_judge(requests_per_minute=1).judge(many(6)))
    await until(lambda: bool(server.asked))
    await asyncio.sleep(0.5)
    assert len(server.asked) == 1
    judging.cancel()


async def test_a_retry_counts_for_the_calls_a_minute(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.queue(refusal(500, retry_after_ms=1))
    judging = asyncio.create_task(make_judge(requests_per_minute=1).judge(many(1)))
    await until(lambda: bool(server.asked))
    await asyncio.sleep(0.5)
    assert len(server.asked) == 1
    judging.cancel()


async def test_a_pace_delays_and_loses_nothing(server: JudgeServer, make_judge: MakeJudge) -> None:
    server.queue(refusal(503, retry_after_ms=1))
    judged = await make_judge(requests_per_minute=1200).judge(many(8))
    assert all(v is not None for (v,) in judged)
    assert len(server.asked) == 9


async def test_waiting_for_the_pace_is_no_late_answer(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    """The last of four calls waits more than twice the deadline of a try before it is sent."""
    judge = make_judge(requests_per_minute=20, call_timeout_s=4.0, call_retries=0)
    assert all(v is not None for (v,) in await judge.judge(many(4)))


# An answer of the server is 10 tokens in and 5 out.


async def test_a_spent_budget_of_tokens_stops_the_run(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    judge = make_judge(budget_tokens=40, concurrency=1)
    await judge.judge(many(2))
    told = r"45 of 40 tokens of an actor.*judge\.budget_tokens.*resume=auto"
    with pytest.raises(BudgetError, match=told) as caught:
        await judge.judge([trajectory("x", *["gold"] * 9)])
    assert isinstance(caught.value, UserError)
    assert len(server.asked) == 3


async def test_calls_that_wait_for_their_place_are_not_made_once_the_budget_is_spent(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.wait_s = 0.05
    judge = make_judge(budget_tokens=40, concurrency=4)
    with pytest.raises(BudgetError):
        await judge.judge(many(40))
    await judge.close()
    assert len(server.asked) <= 2 + 4  # the third answer spends it: two before, four under way


async def test_a_spent_budget_of_money_stops_the_run(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    """A call costs 10 x 0.05 + 5 x 0.2 = 1.5."""
    judge = make_judge(
        budget_money=4.0, price_input=50_000, price_output=200_000, concurrency=1, num_actors=1
    )
    with pytest.raises(BudgetError, match=r"4\.50 of 4\.00.*judge\.budget_money"):
        await judge.judge(many(9))
    assert len(server.asked) == 3
    stats = await judge.stats()
    assert stats["money"] == pytest.approx(4.5)
    assert (stats["calls"], stats["prompt_tokens"], stats["completion_tokens"]) == (3, 30, 15)


async def test_actors_share_the_budget(server: JudgeServer, make_judge: MakeJudge) -> None:
    judge = make_judge(budget_tokens=80, num_actors=2, concurrency=1)
    with pytest.raises(BudgetError, match=r"45 of 40 tokens of an actor's share \(of 2\)"):
        await judge.judge(many(9))


async def test_a_spent_budget_that_degrades_leaves_the_rest_without_verdicts_and_goes_on(
    server: JudgeServer, make_judge: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    judge = make_judge(budget_tokens=40, on_budget="degrade", concurrency=1, stop_after_failures=2)
    judged = await judge.judge(many(9))
    assert sorted(v is not None for (v,) in judged) == [False] * 6 + [True] * 3
    assert await judge.judge(many(5, "dust")) == [(None,)] * 5
    assert len(server.asked) == 3
    stats = await judge.stats()
    assert (stats["over_budget"], stats["failures"], stats["rounds"]) == (11, 11, 14)
    assert caplog.text.count("budget is spent") == 1


async def test_bad_answers_are_paid_for_and_asked_again_only_while_there_is_budget(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.every = lambda asked: completion("no verdict")
    judge = make_judge(budget_tokens=20, max_attempts=9)
    with pytest.raises(BudgetError):
        await judge.judge(many(1))
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "usage",
    [
        GONE,
        {"prompt_tokens": -10, "completion_tokens": -5},
        {"prompt_tokens": "10", "completion_tokens": "many"},
        {"prompt_tokens": True, "completion_tokens": 0.5},
        {"prompt_tokens": None, "completion_tokens": {}},
        ["prompt_tokens"],
        "none",
    ],
)
async def test_a_budget_holds_whatever_the_server_says_of_tokens(
    server: JudgeServer, make_judge: MakeJudge, usage: Any
) -> None:
    answer = verdict(1, 0)
    server.every = lambda asked: completion(answer, usage)
    judge = make_judge(budget_tokens=3000, concurrency=1)
    with pytest.raises(BudgetError):
        await judge.judge(many(9))
    stats = await judge.stats()
    sent = "".join(m["content"] for m in server.asked[0].body["messages"])
    assert stats["calls"] == len(server.asked) < 9
    assert stats["prompt_tokens"] == pytest.approx(len(sent) / 3 * stats["calls"], rel=0.01)
    assert stats["completion_tokens"] == -(-len(answer) // 3) * stats["calls"]
    assert stats["cached_tokens"] == 0


async def test_tokens_of_the_servers_cache_are_counted(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    server.queue(
        completion(verdict(1, 0), {**usage, "prompt_tokens_details": {"cached_tokens": 8}}),
        completion(verdict(1, 0), {**usage, "prompt_tokens_details": {"cached_tokens": -8}}),
    )
    judge = make_judge()
    await judge.judge(many(2))
    assert (await judge.stats())["cached_tokens"] == 8


async def test_what_is_in_the_cache_is_not_asked_by_a_later_judge(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Path
) -> None:
    asked_about = [trajectory("x", "gold", "so"), trajectory("y", "dust")]
    cache = str(tmp_path / "new" / "verdicts.sqlite")
    first = make_judge(cache=cache)
    verdicts = await first.judge(asked_about)
    await first.close()
    assert len(server.asked) == 3
    second = make_judge(cache=cache)
    assert await second.judge(asked_about) == verdicts
    assert len(server.asked) == 3
    stats = await second.stats()
    assert (stats["cache_hits"], stats["rounds"], stats["failures"]) == (3, 3, 0)
    assert stats["calls"] == 0


@pytest.mark.parametrize("rounds", ["each", "together"])
async def test_the_cache_knows_the_other_rounds_of_a_trajectory_apart(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Path, rounds: str
) -> None:
    judge = make_judge(cache=str(tmp_path / "verdicts.sqlite"), rounds=rounds)
    asked_about = [trajectory("x", "gold", "gold so", "gold", "gold so")]
    assert await judge.judge(asked_about) == await judge.judge(asked_about)
    assert len(server.asked) == (4 if rounds == "each" else 1)


def changed_prompt(directory: Path) -> str:
    """Our prompt with a word changed, under the same version."""
    path = directory / "criteria_v1.yaml"
    shutil.copy(Path(prompt.__file__).parent / "prompts" / "criteria_v1.yaml", path)
    path.write_text(path.read_text().replace("in at most 40 words", "in at most 41 words"))
    return str(path)


@pytest.mark.parametrize("changed", ["model", "prompt", "temperature", "rounds", "samples"])
async def test_the_cache_is_not_read_where_another_answer_could_come(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Path, changed: str
) -> None:
    change: dict[str, Any] = {
        "model": "another",
        "prompt": changed_prompt(tmp_path),
        "temperature": 0.5,
        "rounds": "together",
        "samples": 3,  # the first of them is known
    }
    usual: dict[str, Any] = {"cache": str(tmp_path / "verdicts.sqlite"), "temperature": 0.9}
    await make_judge(**usual).judge([trajectory("x", "gold")])
    await make_judge(**usual | {changed: change[changed]}).judge([trajectory("x", "gold")])
    asked = len(server.asked)
    assert asked == (3 if changed == "samples" else 2)
    await make_judge(**usual).judge([trajectory("x", "gold")])
    assert len(server.asked) == asked


async def test_trajectories_that_begin_alike_are_asked_once_for_what_is_alike(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Path
) -> None:
    judge = make_judge(cache=str(tmp_path / "verdicts.sqlite"))
    for asked_about, number in [
        (trajectory("x", "gold", "dust"), 2),
        (trajectory("x", "gold", "so", "dust"), 4),  # its first round is known
        (trajectory("x", "so", "dust"), 6),  # its second round comes after another first one
        (trajectory("y", "gold"), 7),
    ]:
        await judge.judge([asked_about])
        assert len(server.asked) == number


async def test_no_verdict_is_not_kept(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Path
) -> None:
    server.queue(completion("no"))
    judge = make_judge(cache=str(tmp_path / "verdicts.sqlite"), max_attempts=1)
    assert await judge.judge([trajectory("x", "gold")]) == [(None,)]
    assert await judge.judge([trajectory("x", "gold")]) == [(GOLD,)]


async def test_a_canary_is_always_asked(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Path
) -> None:
    """It watches the judge, not the cache."""
    judge = make_judge(cache=str(tmp_path / "verdicts.sqlite"))
    canary = replace(trajectory("x", "gold"), purpose=Purpose.CANARY)
    await judge.judge([trajectory("x", "gold")])
    await judge.judge([canary, canary])
    assert len(server.asked) == 3


async def test_two_judges_share_a_file(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Path
) -> None:
    cache = str(tmp_path / "verdicts.sqlite")
    one, other = make_judge(cache=cache), make_judge(cache=cache)
    ours, theirs = many(20), many(20, "so")
    await asyncio.gather(one.judge(ours), other.judge(theirs))
    asked = len(server.asked)
    assert asked == 40
    assert await one.judge(theirs) == await other.judge(theirs)
    assert await other.judge(ours) == await one.judge(ours)
    assert len(server.asked) == asked


async def test_equal_asks_under_way_are_one_request(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.wait_s = 0.05
    judge = make_judge()
    one = trajectory("x", "gold", "so")
    (a, b), (c,) = await asyncio.gather(judge.judge([one, one]), judge.judge([one]))
    assert a == b == c
    assert None not in a
    assert len(server.asked) == 2
    stats = await judge.stats()
    assert (stats["calls"], stats["cache_hits"], stats["rounds"]) == (2, 4, 6)


async def test_equal_asks_under_way_fail_together_and_the_next_asks_anew(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.queue(completion("no", wait_s=0.05))
    judge = make_judge(max_attempts=1)
    one = trajectory("x", "gold")
    assert await judge.judge([one, one, one]) == [(None,)] * 3
    assert len(server.asked) == 1
    assert await judge.judge([one]) == [(GOLD,)]


async def test_a_caller_who_gives_up_takes_the_answer_from_nobody(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.wait_s = 2.0
    judge = make_judge()
    one = trajectory("x", "gold")
    gives_up = asyncio.create_task(judge.judge([one]))
    await until(lambda: bool(server.asked))
    waits = asyncio.create_task(judge.judge([one]))
    await asyncio.sleep(0)
    gives_up.cancel()
    assert await waits == [(GOLD,)]
    assert gives_up.cancelled()
    assert len(server.asked) == 1


async def test_a_file_that_is_no_cache_is_told(make_judge: MakeJudge, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    path.write_text("something of yours, and quite important\n" * 100)
    with pytest.raises(UserError, match=f"judge.cache={path}"):
        make_judge(cache=str(path))
    assert path.read_text().startswith("something of yours")
