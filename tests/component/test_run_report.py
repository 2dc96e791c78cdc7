"""What a run hands to its report: the credit of chosen trajectories, the judge's totals."""

import json

from pipeline.config import AlgorithmConfig
from pipeline.config_checks import to_config
from pipeline.credit import build_algorithm
from pipeline.judging.chat import BudgetError
from pipeline.overrides import compose_config
from pipeline.run_report import judge_totals, shown_trajectories
from pipeline.run_results import RunResults
from pipeline.step_record import StepRecord
from tests.support.credit_cases import group, trajectory

PLAYED = group(
    trajectory(reward=1.0, verdicts=[(1, 1)]),
    trajectory(reward=0.0, verdicts=[(0, 1)], sample_id=1),
)
WHOLE_BATCH = AlgorithmConfig(scale="batch")


class NoJudge:
    async def judge(self, trajectories):
        raise AssertionError("all of them are judged")


async def shown(config: AlgorithmConfig, credits):
    return await shown_trajectories(
        NoJudge(),
        build_algorithm(config),
        before=None,
        after=None,
        training=PLAYED.trajectories,
        trained=credits,
        count=8,
    )


async def test_an_algorithm_of_groups_shows_the_credit_of_the_group():
    made = {s.trajectory.sample_id: s.credit for s in await shown(AlgorithmConfig(), [])}
    assert made[0].advantage > 0 > made[1].advantage


async def test_credit_from_the_whole_batch_is_shown_as_it_was_trained():
    other = group(trajectory(reward=0.0, group_id=1), trajectory(reward=0.0, group_id=1))
    trained = build_algorithm(WHOLE_BATCH).credit([PLAYED, other]).trajectories
    made = {s.trajectory.sample_id: s.credit for s in await shown(WHOLE_BATCH, trained)}
    assert made[0] is trained[0]
    assert made[1] is trained[1]


async def test_credit_that_is_not_known_is_not_made_up():
    penalised = AlgorithmConfig(kl_coef=0.1, kl_in="reward")
    assert [s.credit for s in await shown(penalised, [])] == [None, None]


async def test_a_judge_that_stops_after_training_takes_no_report_away():
    class Spent:
        async def judge(self, trajectories):
            raise BudgetError("the judge's budget is spent")

    unjudged = group(trajectory(reward=1.0, verdicts=[None]), trajectory(reward=0.0, sample_id=1))
    (won, lost) = await shown_trajectories(
        Spent(),
        build_algorithm(AlgorithmConfig()),
        before=None,
        after=None,
        training=unjudged.trajectories,
        trained=[],
        count=2,
    )
    assert {won.trajectory.reward, lost.trajectory.reward} == {0.0, 1.0}


class CountingJudge:
    """Its totals grow by what it judges."""

    def __init__(self, **totals: float) -> None:
        self.totals = totals

    async def stats(self):
        return dict(self.totals)


async def test_the_judges_totals_are_those_since_training_began():
    judge = CountingJudge(rounds=4.0, calls=4.0)
    before = await judge_totals(judge)
    judge.totals = {"rounds": 10.0, "calls": 9.0, "money": 0.5}
    assert await judge_totals(judge, since=before) == {"rounds": 6.0, "calls": 5.0, "money": 0.5}


async def test_a_lost_actor_takes_its_counts_with_it_and_leaves_none_below_zero():
    assert await judge_totals(CountingJudge(rounds=1.0), since={"rounds": 4.0}) == {"rounds": 0.0}


def of_step(step: int, trajectories: int) -> StepRecord:
    """A step of one second."""
    return StepRecord(
        step=step,
        version=step,
        elapsed_s=float(step),
        metrics={
            "rollout/trajectories_per_s": float(trajectories),
            "step/seconds": 1.0,
            "buffer/filtered": 0.0,
            "buffer/failed": 0.0,
            "judge/wait_s": 0.5 * step,
        },
    )


def test_a_resumed_run_shares_costs_out_over_the_trajectories_that_they_were_for(tmp_path):
    config = to_config(compose_config(["experiment=cpu_tiny", f"run_dir={tmp_path}"]))
    results = RunResults(judge={"rounds": 8.0, "calls": 8.0, "money": 1.0})
    results.go_on_from([of_step(1, 300)])
    results.meter.add(of_step(2, 100))
    trained = build_algorithm(config.algorithm).credit([PLAYED]).trajectories
    results.trained, results.credits = list(PLAYED.trajectories), list(trained)
    results.write(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["judge"]["trajectories"] == 100
    assert summary["judge"]["per_1000_trajectories"]["money"] == 10.0
    assert summary["judge"]["wait_s"] == 1.0  # of the second step
    assert summary["judge"]["per_round"]["wait_s"] == 1.0 / 8
    assert summary["verdict_sensitivity"]["kept"] == 2
    assert summary["verdict_sensitivity"]["verdicts"] == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What judging cost" in page
