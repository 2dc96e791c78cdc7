"""The credit that the report shows of chosen trajectories."""

from pipeline.config import AlgorithmConfig
from pipeline.credit import build_algorithm
from pipeline.run_report import shown_trajectories
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
