"""What can go wrong at the judge's endpoint, and how it ends: retried, no verdict, or told."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import StoppedError, UserError
from pipeline.judging.chat import ChatError
from pipeline.types import Verdict
from tests.integration.judge.conftest import KEY, MakeJudge
from tests.support.judge_server import (
    Answer,
    Asked,
    JudgeServer,
    completion,
    garbled,
    refusal,
    verdict,
)
from tests.support.worded_trajectory import trajectory

SOON = {"retry_after_ms": 1}
GOOD = completion(verdict(1, 0))


def gold() -> list[Any]:
    return [trajectory("x", "gold")]


def whole(error: BaseException) -> str:
    """What a log would show of it."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(refusal(500, **SOON), id="500"),
        pytest.param(refusal(503, **SOON), id="503"),
        pytest.param(refusal(408, **SOON), id="408"),
        pytest.param(refusal(409, **SOON), id="409"),
        pytest.param(refusal(429, code="rate_limit_exceeded", retry_after=0.01), id="429"),
        pytest.param(Answer(status=502, body=b"<html>Bad Gateway", headers={"retry-after-ms": "1"}),
                     id="proxy"),
    ],
)  # fmt: skip
async def test_what_passes_is_tried_again_and_costs_no_verdict(
    server: JudgeServer, make_judge: MakeJudge, fault: Answer
) -> None:
    server.queue(fault, times=3)
    judge = make_judge()
    ((found,),) = await judge.judge(gold())
    assert found == Verdict(utility=1, correctness=0, rationale="on x query 1")
    assert len(server.asked) == 4
    assert len({asked.text for asked in server.asked}) == 1
    stats = await judge.stats()
    assert (stats["calls"], stats["rounds"], stats["failures"]) == (1, 1, 0)
    assert (stats["prompt_tokens"], stats["completion_tokens"]) == (10, 5)
    assert stats["failed_calls"] == stats["bad_answers"] == 0


@pytest.mark.parametrize(
    ("fault", "deadline_s"),
    [
        pytest.param(refusal(429), 30.0, id="429-without-retry-after"),
        pytest.param(completion(verdict(0, 1), cut=True), 30.0, id="cut"),
        pytest.param(completion(verdict(0, 1), wait_s=60), 1.5, id="stall"),
        pytest.param(completion(verdict(0, 1), trickle_s=0.5), 1.5, id="trickle"),
    ],
)
async def test_a_try_that_breaks_off_is_made_again_after_a_pause(
    server: JudgeServer, make_judge: MakeJudge, fault: Answer, deadline_s: float
) -> None:
    server.queue(fault)
    judge = make_judge(call_timeout_s=deadline_s)
    ((found,),) = await judge.judge(gold())
    assert found is not None
    assert (found.utility, found.correctness) == (1, 0)
    assert len(server.asked) >= 2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(refusal(500, **SOON), id="500"),
        pytest.param(refusal(429, **SOON), id="429"),
        pytest.param(
            Answer(status=418, body=b'{"error": {"type": {"a": 1}, "code": ["b"]}}'), id="odd"
        ),
        pytest.param(completion(verdict(1, 1), cut=True), id="cut"),
        pytest.param(completion(verdict(1, 1), wait_s=60), id="stall"),
        pytest.param(completion(verdict(1, 1), trickle_s=0.1), id="trickle"),
    ],
)
async def test_what_does_not_pass_ends_as_no_verdict(
    server: JudgeServer,
    make_judge: MakeJudge,
    fault: Answer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A trickle takes longer than the deadline, though each byte comes in time."""
    server.every = lambda asked: fault
    slow = fault.wait_s or fault.trickle_s
    judge = make_judge(call_timeout_s=2.0 if slow else 30.0, call_retries=1)
    assert await judge.judge(gold()) == [(None,)]
    assert len(server.asked) == (1 if fault.status == 418 else 2)
    stats = await judge.stats()
    assert (stats["failed_calls"], stats["failures"], stats["rounds"]) == (1, 1, 1)
    assert stats["calls"] == 0
    assert server.base_url in caplog.text


async def test_an_endpoint_that_stalls_stops_the_run_before_all_calls_were_tried_in_full(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.every = lambda asked: completion(verdict(1, 1), wait_s=60)
    judge = make_judge(call_timeout_s=0.5, call_retries=3, concurrency=4)
    with pytest.raises(StoppedError) as caught:
        await judge.judge([trajectory(f"t{n}", "gold") for n in range(40)])
    for named in (server.base_url, "judge.call_timeout_s", "judge.concurrency=4", "resume=auto"):
        assert named in str(caught.value)
    assert len(server.asked) < 8 + 4  # 40 calls would make 160 tries


async def test_an_endpoint_that_answers_now_and_then_does_not_stall(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    """Any answer will do."""
    late = completion(verdict(1, 1), wait_s=60)
    server.queue(late, GOOD, late, refusal(500), late, GOOD)
    judge = make_judge(call_timeout_s=1.5, call_retries=0, concurrency=1)  # 2 in a row: a stall
    judged = [await judge.judge([trajectory(f"t{n}", "gold")]) for n in range(6)]
    assert [found is not None for ((found,),) in judged] == [False, True, False, False, False, True]


async def test_where_failures_never_stop_the_run_a_stall_does_not(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.every = lambda asked: completion(verdict(1, 1), wait_s=60)
    judge = make_judge(call_timeout_s=0.3, call_retries=0, concurrency=1, stop_after_failures=0)
    assert await judge.judge([trajectory(f"t{n}", "gold") for n in range(4)]) == [(None,)] * 4
    assert len(server.asked) == 4


async def test_a_request_that_is_refused_alone_leaves_its_round_alone_without_verdict(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    """As where one trace is too long for the model."""

    def too_long(asked: Asked) -> Answer | None:
        return refusal(400, code="context_length_exceeded") if len(asked.trace) == 3 else None

    server.every = too_long
    judge = make_judge()
    ((first, second, third),) = await judge.judge([trajectory("x", "gold", "gold", "gold")])
    assert first is not None
    assert second is None
    assert third is not None
    assert len(server.asked) == 3  # no retry mends it
    assert (await judge.stats())["failed_calls"] == 1


NO_COMPLETIONS = [
    pytest.param(garbled("surely {not JSON"), id="no-json"),
    pytest.param(garbled("<html>", type="text/html"), id="html"),
    pytest.param(garbled(""), id="empty"),
    pytest.param(garbled(None), id="null"),
    pytest.param(garbled([1, 2]), id="list"),
    pytest.param(garbled('{"x": ' + "[" * 600 + "]" * 600 + "}"), id="nested"),
    pytest.param(garbled("[" * 100_000), id="deep"),
    pytest.param(garbled('{"usage": ' + "9" * 5000 + "}"), id="long-number"),
    pytest.param(garbled({"error": {"message": "busy"}}), id="no-choices"),
    pytest.param(garbled({"choices": []}), id="empty-choices"),
    pytest.param(garbled({"choices": {}}), id="choices-object"),
    pytest.param(garbled({"choices": "abc"}), id="choices-text"),
    pytest.param(garbled({"choices": [{"message": None}]}), id="no-message"),
    pytest.param(Answer(body=b"\xff\xfe\x00\xd8"), id="bytes"),
]
NO_VERDICTS = [
    pytest.param(content, id=name)
    for name, content in {
        "null": None,
        "number": 1,
        "empty": "",
        "prose": "I would say that it was useful.",
        "around": f"Here it is: {verdict(1, 1)}",
        "fenced": f"```json\n{verdict(1, 1)}\n```",
        "after": verdict(1, 1) + "\nIgnore the rest.",
        "truncated": verdict(1, 1)[:-5],
        "extra-key": '{"rationale": "", "utility": 1, "correctness": 1, "sure": 1}',
        "missing-key": '{"rationale": "", "utility": 1}',
        "two": '{"rationale": "", "utility": 2, "correctness": 1}',
        "half": '{"rationale": "", "utility": 0.5, "correctness": 1}',
        "float": '{"rationale": "", "utility": 1.0, "correctness": 1}',
        "true": '{"rationale": "", "utility": true, "correctness": 1}',
        "text": '{"rationale": "", "utility": "1", "correctness": 1}',
        "nan": '{"rationale": "", "utility": NaN, "correctness": 1}',
        "long": '{"rationale": "", "utility": ' + "1" * 5000 + ', "correctness": 1}',
        "deep": '{"rationale": "", "utility": ' + "[" * 100_000,
        "twice": '{"rationale": "", "utility": 0, "utility": 1, "correctness": 1}',
        "list": f"[{verdict(1, 1)}]",
        "rounds": f'{{"rounds": [{verdict(1, 1)}]}}',
    }.items()
]


@pytest.mark.parametrize("fault", NO_COMPLETIONS)
async def test_an_answer_that_is_no_completion_is_asked_again(
    server: JudgeServer, make_judge: MakeJudge, fault: Answer
) -> None:
    server.queue(fault)
    judge = make_judge()
    assert await judge.judge(gold()) == [
        (Verdict(utility=1, correctness=0, rationale="on x query 1"),)
    ]
    stats = await judge.stats()
    assert (stats["bad_answers"], stats["failures"], stats["calls"]) == (1, 0, 2)


@pytest.mark.parametrize("content", NO_VERDICTS)
async def test_an_answer_that_is_no_verdict_is_asked_again_and_ends_as_none(
    server: JudgeServer, make_judge: MakeJudge, content: Any
) -> None:
    server.every = lambda asked: completion(content)
    judge = make_judge(max_attempts=3)
    assert await judge.judge(gold()) == [(None,)]
    # A greedy model would say the same again.
    first, *others = [asked.body["temperature"] for asked in server.asked]
    assert first == 0
    assert len(others) == 2
    assert all(temperature > 0 for temperature in others)
    stats = await judge.stats()
    assert (stats["bad_answers"], stats["failures"], stats["rounds"]) == (3, 1, 1)
    assert (stats["calls"], stats["prompt_tokens"]) == (3, 30)  # they cost what they cost


@pytest.mark.parametrize(
    ("temperature", "asked_with"), [(0.0, [0.0, 0.7, 0.7]), (0.5, [0.5, 0.7, 0.7]), (1, [1, 1, 1])]
)
async def test_a_bad_answer_is_never_asked_again_at_a_lower_temperature(
    server: JudgeServer, make_judge: MakeJudge, temperature: float, asked_with: list[float]
) -> None:
    """Some models take a temperature of 1 and no other."""
    server.every = lambda asked: completion("no")
    await make_judge(temperature=temperature, max_attempts=3).judge(gold())
    assert [asked.body["temperature"] for asked in server.asked] == asked_with


async def test_of_several_bad_answers_and_a_good_one_the_good_one_counts(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.queue(completion("well"), completion(None), completion(verdict(0, 1, "at last")))
    judge = make_judge()
    assert await judge.judge(gold()) == [(Verdict(utility=0, correctness=1, rationale="at last"),)]


@pytest.mark.parametrize("number", [0, 1, 3])
async def test_together_another_number_of_verdicts_is_none(
    server: JudgeServer, make_judge: MakeJudge, number: int
) -> None:
    rows = ", ".join([verdict(1, 1)] * number)
    server.every = lambda asked: completion(f'{{"rounds": [{rows}]}}')
    judge = make_judge(rounds="together", max_attempts=2)
    assert await judge.judge([trajectory("x", "gold", "gold")]) == [(None, None)]
    assert len(server.asked) == 2


async def test_half_a_character_in_a_rationale_does_no_harm(
    server: JudgeServer, make_judge: MakeJudge, tmp_path: Any
) -> None:
    """JSON can hold one half of a surrogate pair; files in UTF-8 cannot."""
    half = r'{"rationale": "so \ud83d far", "utility": 1, "correctness": 0}'
    server.queue(completion(half))
    judge = make_judge(cache=str(tmp_path / "verdicts.sqlite"))
    ((found,),) = await judge.judge(gold())
    assert found == Verdict(utility=1, correctness=0, rationale="so ? far")
    assert await judge.judge(gold()) == [(found,)]


def repeated_key(status: int, code: str | None = None, **headers: Any) -> Answer:
    """A refusal that repeats the key, as some servers do."""
    return refusal(status, f"{'no ' * 60}. Incorrect API key provided: {KEY}.", code, **headers)


REFUSALS = [
    pytest.param(repeated_key(401, "invalid_api_key"), id="wrong-key"),
    pytest.param(repeated_key(403), id="not-allowed"),
    pytest.param(repeated_key(404, "model_not_found"), id="unknown-model"),
    pytest.param(repeated_key(402), id="no-money"),
    pytest.param(repeated_key(429, "insufficient_quota", **SOON), id="no-quota"),
    pytest.param(refusal(401, KEY), id="key-alone"),
    pytest.param(Answer(status=401, body=f"denied: Bearer {KEY}".encode()), id="no-json"),
]


@pytest.mark.parametrize("answer", REFUSALS)
@pytest.mark.parametrize("method", ["ready", "judge"])
async def test_what_no_retry_mends_is_the_users_to_mend_and_the_key_is_nowhere(
    server: JudgeServer,
    make_judge: MakeJudge,
    caplog: pytest.LogCaptureFixture,
    answer: Answer,
    method: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.every = lambda asked: answer
    judge = make_judge(model="big-one")
    with pytest.raises(UserError) as caught:
        await (judge.ready() if method == "ready" else judge.judge(gold()))
    message = str(caught.value)
    for named in ("OPENAI_API_KEY", server.base_url, "big-one", str(answer.status)):
        assert named in message
    assert KEY not in whole(caught.value)
    assert any(record.name.startswith("openai") for record in caplog.records)
    assert KEY not in caplog.text
    for record in caplog.records:
        assert KEY not in f"{record.getMessage()} {record.args!r} {record.exc_text}"


async def test_no_log_of_a_run_that_works_or_fails_holds_the_key(
    server: JudgeServer, make_judge: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = f"your key is {KEY}"
    server.queue(refusal(500, told, **SOON), refusal(400, told), GOOD)
    server.queue(garbled(told), garbled({"error": told}), refusal(418, told))
    judge = make_judge()
    await judge.ready()
    await judge.judge(gold())
    await judge.judge(gold())
    assert len(server.asked) == 7
    assert caplog.records
    for record in caplog.records:
        assert KEY not in f"{record.getMessage()} {record.args!r} {record.exc_text}"


async def test_settings_that_the_model_does_not_take_are_told_at_the_start(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.every = lambda asked: refusal(400, "temperature must be 1 with this model")
    with pytest.raises(UserError) as caught:
        await make_judge(temperature=0.5).ready()
    for named in ("temperature must be 1", "judge.temperature (0.5)", "judge.structured"):
        assert named in str(caught.value)


async def test_an_endpoint_that_is_down_is_told_with_its_address(make_judge: MakeJudge) -> None:
    with socket.socket() as silent:  # it has the port, and listens to nobody
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        judge = make_judge(base_url=address, call_retries=1)
        with pytest.raises(ChatError) as caught:
            await judge.ready()
        for named in (address, "judge.base_url", "connection attempts failed"):
            assert named in str(caught.value)
        assert await judge.judge(gold()) == [(None,)]


async def test_a_wrong_path_is_the_users_to_mend(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    address = server.base_url.removesuffix("/v1")
    with pytest.raises(UserError, match="404") as caught:
        await make_judge(base_url=address).ready()
    assert f"judge.base_url={address}" in str(caught.value)


@pytest.mark.parametrize("page", [garbled("<html>Welcome", type="text/html"), garbled({"ok": 1})])
async def test_a_page_that_is_no_endpoint_is_found_at_the_start(
    server: JudgeServer, make_judge: MakeJudge, page: Answer
) -> None:
    server.every = lambda asked: page
    with pytest.raises(ChatError, match=r"judge\.base_url right"):
        await make_judge().ready()


def every_second_fails() -> Callable[[Asked], Answer]:
    answers = [completion("no"), GOOD]

    def answer(asked: Asked) -> Answer:
        answers.reverse()
        return answers[0]

    return answer


async def test_so_many_failures_in_a_row_stop_the_run(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    judge = make_judge(stop_after_failures=3, max_attempts=1)
    server.every = every_second_fails()
    for number in range(6):
        await judge.judge([trajectory(f"mixed {number}", "gold")])
    server.every = lambda asked: completion("no")
    await judge.judge([trajectory("a", "gold")])
    with pytest.raises(UserError, match=r"judge\.stop_after_failures"):
        await judge.judge([trajectory("b", "gold", "gold")])


async def test_a_judge_that_fails_for_ever_goes_on_where_the_settings_say_so(
    server: JudgeServer, make_judge: MakeJudge
) -> None:
    server.every = lambda asked: completion("no")
    judge = make_judge(stop_after_failures=0, max_attempts=1)
    judged = await judge.judge([trajectory(f"t{n}", "gold") for n in range(30)])
    assert judged == [(None,)] * 30
    assert (await judge.stats())["failures"] == 30
