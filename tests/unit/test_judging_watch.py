"""Canaries and costs: what the judge's watch sees, and what it does."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.episode.evidence import judge_by_evidence
from pipeline.errors import InfrastructureError, StoppedError, UserError
from pipeline.judging.config import JudgeConfig
from pipeline.judging.spending import Spending
from pipeline.judging.watch import CanaryWindow, JudgeWatch
from pipeline.types import Purpose, Trajectory, Verdict
from tests.support.traces import GOOD, NEXT, traces, trajectory_of


class Pool:
    """A judge that is honest until it errs; counts canaries apart."""

    def __init__(self) -> None:
        self.errs = False
        self.canaries: list[Trajectory] = []
        self.totals: dict[str, float] = {}
        self.fails_for: Purpose | None = None
        self.error: UserError | None = None
        self.fails_alone: Purpose | None = None  # only calls for this raise the error

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        asked_for = {t.purpose for t in trajectories}
        if self.error is not None and self.fails_alone in (None, *asked_for):
            raise self.error
        if any(t.purpose is self.fails_for for t in trajectories):
            raise InfrastructureError("away")
        self.canaries += [t for t in trajectories if t.purpose is Purpose.CANARY]
        return [tuple(map(self._said, judge_by_evidence(t))) for t in trajectories]

    def _said(self, verdict: Verdict | None) -> Verdict | None:
        if verdict is None or not self.errs:
            return verdict
        return Verdict(utility=1 - verdict.utility, correctness=verdict.correctness)

    async def stats(self) -> Mapping[str, float]:
        return dict(self.totals)


def watch(pool: Pool, **settings: object) -> JudgeWatch:
    config = JudgeConfig(canary_every=2, canary_window=4, canary_alarm=0.8, **settings)  # type: ignore[arg-type]
    return JudgeWatch(pool, config, traces(), seed=1)


TRAJECTORY = trajectory_of(GOOD, NEXT)


async def test_a_canary_goes_with_every_so_many_trajectories_and_is_marked() -> None:
    pool = Pool()
    watched = watch(pool)
    for _ in range(10):
        (verdicts,) = await watched.judge([TRAJECTORY])
        assert verdicts == judge_by_evidence(TRAJECTORY)
    assert len(pool.canaries) == 5
    assert {t.sample_id for t in pool.canaries} == {0, 1, 2, 3, 4}  # each once, before any again
    metrics = await watched.metrics()
    assert metrics["judge/canary_u_agreement"] == metrics["judge/canary_v_agreement"] == 1.0
    assert metrics["judge/canary_rounds"] == sum(len(t.search_rounds) for t in pool.canaries)
    assert (await watched.metrics())["judge/canary_rounds"] == 0


async def test_an_alarm_warns_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    watched = watch(pool)
    pool.errs = True
    await watched.judge([TRAJECTORY] * 8)
    assert (await watched.metrics())["judge/canary_alarm"] == 1.0
    assert (await watched.metrics())["judge/canary_v_agreement"] == 1.0
    assert "judge.canary_alarm" in caplog.text
    assert caplog.text.count("on_canary_alarm=warn") == 1  # once, while it lasts
    pool.errs = False
    await watched.judge([TRAJECTORY] * 8)
    assert (await watched.metrics())["judge/canary_alarm"] == 0.0
    assert "the alarm is over" in caplog.text


async def test_an_alarm_can_take_the_verdicts_away_while_it_lasts() -> None:
    pool = Pool()
    watched = watch(pool, on_canary_alarm="uniform")
    pool.errs = True
    await watched.judge([TRAJECTORY] * 8)
    assert await watched.judge([TRAJECTORY]) == [(None, None)]
    pool.errs = False
    await watched.judge([TRAJECTORY] * 8)
    assert await watched.judge([TRAJECTORY]) == [judge_by_evidence(TRAJECTORY)]


async def test_an_alarm_can_stop_the_run() -> None:
    pool = Pool()
    watched = watch(pool, on_canary_alarm="stop")
    pool.errs = True
    with pytest.raises(UserError, match="agrees with the labels"):
        await watched.judge([TRAJECTORY] * 8)


async def test_canaries_that_nobody_judges_cost_no_verdicts() -> None:
    pool = Pool()
    pool.fails_for = Purpose.CANARY
    watched = watch(pool)
    assert await watched.judge([TRAJECTORY] * 4) == [judge_by_evidence(TRAJECTORY)] * 4
    metrics = await watched.metrics()
    assert metrics["judge/canary_rounds"] == metrics["judge/canary_alarm"] == 0
    assert math.isnan(metrics["judge/canary_u_agreement"])


async def test_a_judge_that_answers_no_call_any_more_stops_the_run() -> None:
    pool = Pool()
    watched = JudgeWatch(pool, JudgeConfig(stop_after_failures=6), [], seed=1)
    pool.fails_for = Purpose.EVALUATE
    for _ in range(2):
        with pytest.raises(InfrastructureError):
            await watched.judge([TRAJECTORY])  # two rounds
    pool.fails_for = None
    await watched.judge([TRAJECTORY])  # they were not in a row
    pool.fails_for = Purpose.EVALUATE
    for _ in range(2):
        with pytest.raises(InfrastructureError):
            await watched.judge([TRAJECTORY])
    with pytest.raises(UserError, match="stop_after_failures"):
        await watched.judge([TRAJECTORY])


def test_canaries_without_a_label_are_refused() -> None:
    silent = [replace(trace, labels=(None,) * len(trace.labels)) for trace in traces()]
    with pytest.raises(UserError, match=r"judge\.canaries"):
        JudgeWatch(Pool(), JudgeConfig(canaries="file"), silent, seed=1)


async def test_costs_are_those_since_the_last_step() -> None:
    pool = Pool()
    watched = JudgeWatch(pool, JudgeConfig(), [], seed=1)
    pool.totals = {"calls": 5.0, "busy_s": 1.0}
    assert await watched.metrics() == {"judge/calls": 5.0}
    pool.totals = {"calls": 7.0}
    assert await watched.metrics() == {"judge/calls": 2.0}


def window_of(right_of_u: Sequence[int], size: int = 60, bound: float = 0.8) -> CanaryWindow:
    window = CanaryWindow(size, bound)
    for right in right_of_u:
        window.add(Verdict(utility=right, correctness=1), Verdict(utility=1, correctness=1))
    return window


@pytest.mark.parametrize(
    ("right", "wrong", "alarm"),
    [
        (0, 9, False),  # too few to tell
        (5, 5, True),  # Wilson's interval: 24 to 76 %
        (6, 4, False),  # 31 to 83 %
        (27, 13, True),  # 52 to 79.9 %
        (28, 12, False),
    ],
)
def test_few_rounds_are_an_alarm_only_where_chance_does_not_explain_them(
    right: int, wrong: int, alarm: bool
) -> None:
    assert window_of([1] * right + [0] * wrong).alarm is alarm


def test_an_alarm_in_u_or_v_is_by_agreement_alone_in_a_full_window() -> None:
    window = CanaryWindow(2, 0.9)
    label = Verdict(utility=0, correctness=1)
    window.add(Verdict(utility=0, correctness=0.2), label)
    assert window.agreement == (1.0, 0.0)
    assert not window.alarm
    window.add(Verdict(utility=0.4, correctness=1), label)
    assert window.agreement == (1.0, 0.5)
    assert window.alarm


async def test_what_a_spent_budget_leaves_without_a_verdict_is_no_alarm() -> None:
    class Spent(Pool):
        def _said(self, verdict: Verdict | None) -> Verdict | None:
            return None

    watched = watch(Spent(), on_canary_alarm="stop")
    assert await watched.judge([TRAJECTORY] * 8) == [(None, None)] * 8
    assert (await watched.metrics())["judge/canary_alarm"] == 0


async def test_a_budget_is_the_whole_runs_whatever_actors_count(tmp_path: Path) -> None:
    """An actor that is started again begins at 0: its share alone would never be spent."""
    pool, kept = Pool(), tmp_path / "judge_spent.json"

    def lives(budget: float) -> JudgeWatch:
        settings = JudgeConfig(name="openai", budget_tokens=budget)
        return JudgeWatch(pool, settings, [], seed=1, spending=Spending(kept))

    first = lives(1000)
    pool.totals = {"prompt_tokens": 700.0, "completion_tokens": 200.0}
    await first.judge([TRAJECTORY])
    assert json.loads(kept.read_text()) == {"tokens": 900, "money": 0.0}  # also if it dies now
    pool.totals = {}
    second = lives(1000)
    pool.totals = {"prompt_tokens": 80.0, "completion_tokens": 19.0}
    await second.judge([TRAJECTORY])
    pool.totals = {"prompt_tokens": 81.0, "completion_tokens": 19.0}
    assert await second.judge([TRAJECTORY])
    await second.metrics()  # what has been judged is trained: the run ends when it would ask again
    with pytest.raises(StoppedError, match=r"1,000 of 1,000 tokens of the whole run.*resume=auto"):
        await second.judge([TRAJECTORY])
    pool.totals = {}
    third = lives(1000)
    with pytest.raises(StoppedError, match=r"judge\.budget_tokens"):
        await third.judge([TRAJECTORY])
    assert await lives(3000).judge([TRAJECTORY])


async def test_over_a_budget_that_degrades_nothing_is_asked_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool, kept = Pool(), tmp_path / "judge_spent.json"
    kept.write_text('{"tokens": 9, "money": 2.5}')
    settings = JudgeConfig(name="openai", budget_money=2.5, on_budget="degrade")
    watched = JudgeWatch(pool, settings, traces(), seed=1, spending=Spending(kept))
    assert await watched.judge([TRAJECTORY] * 30) == [(None, None)] * 30
    assert not pool.canaries
    assert (await watched.metrics())["judge/over_budget"] == 60
    assert "judge/over_budget" not in await watched.metrics()
    await watched.judge([TRAJECTORY])
    assert caplog.text.count("2.50 of 2.50 of the whole run") == 1


@pytest.mark.parametrize("error", [StoppedError("budget"), UserError("the key expired")])
@pytest.mark.parametrize("call", [None, Purpose.CANARY])
async def test_what_was_spent_is_kept_where_a_call_ends_the_run(
    tmp_path: Path, error: UserError, call: Purpose | None
) -> None:
    pool, kept = Pool(), tmp_path / "judge_spent.json"
    settings = JudgeConfig(name="openai", canary_every=2)
    watched = JudgeWatch(pool, settings, traces(), seed=1, spending=Spending(kept))
    pool.totals = {"prompt_tokens": 1.0, "money": 0.25}
    await watched.judge([TRAJECTORY])
    pool.totals = {"prompt_tokens": 5.0, "money": 1.25}
    pool.error, pool.fails_alone = error, call
    with pytest.raises(UserError, match=str(error)):
        await watched.judge([TRAJECTORY])
    assert json.loads(kept.read_text()) == {"tokens": 5, "money": 1.25}
    pool.totals = {"prompt_tokens": 8.0, "money": 2.0}  # calls that nobody waited for
    await watched.count_spent()
    assert json.loads(kept.read_text()) == {"tokens": 8, "money": 2.0}


async def test_what_was_spent_is_kept_where_an_alarm_stops_the_run(tmp_path: Path) -> None:
    pool, kept = Pool(), tmp_path / "judge_spent.json"
    settings = JudgeConfig(name="openai", canary_every=2, canary_window=4, on_canary_alarm="stop")
    watched = JudgeWatch(pool, settings, traces(), seed=1, spending=Spending(kept))
    await watched.judge([TRAJECTORY])
    pool.errs = True
    pool.totals = {"prompt_tokens": 5.0}
    with pytest.raises(StoppedError, match="agrees with the labels"):
        await watched.judge([TRAJECTORY] * 8)
    assert json.loads(kept.read_text()) == {"tokens": 5, "money": 0.0}


async def test_the_alarm_of_a_short_run_says_how_many_rounds_it_saw(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool()
    pool.errs = True
    watched = JudgeWatch(pool, JudgeConfig(canary_every=2), traces(), seed=1)
    await watched.judge([TRAJECTORY] * 10)  # five canaries
    metrics = await watched.metrics()
    assert 10 <= metrics["judge/canary_rounds"] < JudgeConfig().canary_window
    assert metrics["judge/canary_alarm"] == 1.0
    assert f"of the last {metrics['judge/canary_rounds']:.0f} rounds" in caplog.text


def test_what_was_spent_while_the_disk_was_full_is_kept_with_the_next_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spending = Spending(kept := tmp_path / "judge_spent.json")
    with monkeypatch.context() as during:
        during.setattr("pipeline.judging.spending.write_json", full)
        spending.count({"prompt_tokens": 5.0})
    assert not kept.exists()
    spending.count({"prompt_tokens": 5.0})  # nothing was judged meanwhile
    assert json.loads(kept.read_text()) == {"tokens": 5, "money": 0.0}


def test_a_damaged_file_of_what_was_spent_is_named(tmp_path: Path) -> None:
    kept = tmp_path / "judge_spent.json"
    kept.write_text('{"tokens": 9')
    with pytest.raises(UserError, match=r"judge_spent\.json does not say"):
        Spending(kept)
