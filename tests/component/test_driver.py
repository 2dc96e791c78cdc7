"""The real driver, buffer and credit on in-process pools."""

import asyncio
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config import (
    AlgorithmConfig,
    BufferConfig,
    CorrectionConfig,
    CurriculumConfig,
    TrainerConfig,
)
from pipeline.credit import build_algorithm
from pipeline.curriculum import Curriculum
from pipeline.driver import Driver
from pipeline.episode.evidence import judge_by_evidence
from pipeline.errors import GleanerError, InfrastructureError
from pipeline.journal import NoJournal
from pipeline.ledger import Ledger
from pipeline.ledger_view import GroupState
from pipeline.pools import PublishReport
from pipeline.types import Sampling, Verdict
from tests.support.scripted import played_group, question


class Rollouts:
    """Plays nothing: ``rewards(group_id)`` says how the group's samples end."""

    def __init__(self, rewards, delays=lambda group_id: 0):
        self.rewards, self.delays = rewards, delays
        self.version = 0
        self.requests, self.waves = [], []

    async def rollout(self, request):
        self.requests.append(request)
        version = self.version
        for _ in range(self.delays(request.group_id)):
            await asyncio.sleep(0)
        outcome = self.rewards(request.group_id)
        if isinstance(outcome, Exception):
            raise outcome
        return played_group(request, outcome, version, "country of Lyon")

    async def rollout_wave(self, requests, seed):
        self.waves.append(([r.group_id for r in requests], seed))
        return [await self.rollout(request) for request in requests]

    async def stats(self):
        return {}


class Judges:
    def __init__(self, fails=False, slow_s=0.0):
        self.fails, self.judged, self.slow_s = fails, [], slow_s

    async def judge(self, trajectories):
        await asyncio.sleep(self.slow_s)
        if self.fails:
            raise InfrastructureError("the judge is down")
        self.judged += trajectories
        return [judge_by_evidence(t) for t in trajectories]


class Learners:
    """Remembers what it was given; publishing moves the rollouts' version."""

    def __init__(self, rollouts, events):
        self.rollouts, self.steps, self.published = rollouts, [], []
        self.events = events
        self.asked, self.versions = [], []

    async def train_step(self, samples, normaliser, version=0):
        self.steps.append((list(samples), normaliser))
        self.versions.append(version)
        self.events.append("trained")
        await asyncio.sleep(0)
        return {"loss": 1.0, f"only_at_{len(self.steps)}": 2.0}

    async def logprobs(self, samples, which):
        """The n-th call answers -n for every token."""
        self.asked.append((which, len(self.steps)))
        return [np.full(len(s.token_ids), -len(self.asked), np.float32) for s in samples]

    async def publish(self, version):
        self.rollouts.version = version
        self.published.append(version)
        return PublishReport(
            version=version,
            digest=f"digest {version}",
            probe_error=0.0,
            seconds=0.0,
            stall_s=0.0,
        )


def mixed(group_id):
    return [1.0, 0.0]


async def drive(
    rewards=mixed,
    *,
    steps=3,
    minutes=0.0,
    judge_fails=False,
    judge_slow_s=0.0,
    delays=lambda g: 0,
    algorithm=None,
    correction=None,
    ledger=None,
    events=None,
    deterministic_seed=None,
    num_questions=10**6,
    skip_after=0,
    watch_losses=None,
    **buffer,
):
    rollouts = Rollouts(rewards, delays)
    events = [] if events is None else events
    judges, learners, results = Judges(judge_fails, judge_slow_s), Learners(rollouts, events), []
    settings = {"groups_per_step": 2, "group_size": 2, "max_staleness": 1} | buffer
    minibatches = settings.pop("minibatches_per_step", 1)
    ledger = ledger or Ledger(
        groups_per_step=settings["groups_per_step"], max_staleness=settings["max_staleness"]
    )

    async def on_step(result):
        results.append(result)

    driver = Driver(
        rollout=rollouts,
        judge=judges,
        learner=learners,
        publisher=learners,
        algorithm=build_algorithm(algorithm or AlgorithmConfig(), correction),
        questions=Curriculum(
            (
                replace(question("Where is Lyon?", ["x"]), id=f"q{i % num_questions}")
                for i in itertools.count()
            ),
            num_questions,
            CurriculumConfig(skip_after=skip_after),
        ),
        sampling=Sampling(),
        trainer=TrainerConfig(steps=steps, minutes=minutes, minibatches_per_step=minibatches),
        buffer=BufferConfig(**settings),
        ledger=ledger,
        journal=NotingJournal(events),
        on_step=on_step,
        deterministic_seed=deterministic_seed,
        watch_losses=watch_losses,
    )
    await asyncio.wait_for(driver.run(), 60)
    return results, rollouts, judges, learners


async def test_every_step_trains_its_groups_and_publishes_the_next_version():
    results, _, _, learners = await drive()
    assert learners.published == [1, 2, 3]
    assert learners.versions == [0, 1, 2]  # that each step starts from
    assert [[g.group_id for g in r.groups] for r in results] == [[0, 1], [2, 3], [4, 5]]


async def test_staleness_zero_is_on_policy_for_every_token():
    results, _, _, _ = await drive(max_staleness=0, delays=lambda g: 7 * (g % 3))
    for result in results:
        versions = {
            int(v)
            for g in result.groups
            for t in g.trajectories
            for r in t.rounds
            for v in r.versions
        }
        assert versions == {result.start_version}


async def test_staleness_one_lets_rollouts_run_while_the_learner_learns():
    results, _, _, _ = await drive(steps=4, max_staleness=1)
    staleness = [r.start_version - g.admission_version for r in results for g in r.groups]
    assert max(staleness) == 1


async def test_a_deterministic_run_plays_waves_that_fill_the_slots_while_the_learner_waits():
    outcome = {1: [0.0, 0.0], 2: [1.0, 1.0]}  # two groups without variance
    results, rollouts, _, learners = await drive(
        lambda g: outcome.get(g, [1.0, 0.0]),
        steps=2,
        max_staleness=0,
        delays=lambda g: 5 * (g % 2),
        deterministic_seed=7,
    )
    waves = [tickets for tickets, _ in rollouts.waves]
    assert waves == [[0, 1], [2], [3], [4, 5]]
    assert [[g.group_id for g in r.groups] for r in results] == [[0, 3], [4, 5]]
    assert learners.versions == [0, 1]
    again = await drive(
        lambda g: outcome.get(g, [1.0, 0.0]), steps=2, max_staleness=0, deterministic_seed=7
    )
    assert again[1].waves == rollouts.waves  # seeds, too
    assert len({seed for _, seed in rollouts.waves}) == 4


async def test_by_deadline_a_straggler_is_trained_in_its_last_step_and_not_dropped():
    late = {0: 300}
    results, _, _, _ = await drive(order="deadline", delays=lambda g: late.get(g, 0))
    assert [g.group_id for g in results[0].groups] == [1, 2]
    assert 0 in [g.group_id for g in results[1].groups]
    staleness = [r.start_version - g.admission_version for r in results for g in r.groups]
    assert max(staleness) == 1


async def test_only_winners_of_groups_with_variance_are_judged():
    _, _, judges, _ = await drive(lambda g: [1.0, 1.0] if g == 0 else [1.0, 0.0])
    assert judges.judged
    assert all(t.correct and t.group_id != 0 for t in judges.judged)


async def test_a_question_that_taught_nothing_is_passed_over_and_counted():
    results, rollouts, _, _ = await drive(
        lambda g: [0.0, 0.0] if g == 1 else [1.0, 0.0], num_questions=3, skip_after=1
    )
    ids = [r.question.id for r in rollouts.requests]
    assert ids[:7] == ["q0", "q1", "q2", "q0", "q2", "q0", "q2"]
    assert sum(r.skipped for r in results) >= 2


async def test_zero_variance_groups_are_replaced_and_counted():
    results, _, _, _ = await drive(lambda g: [0.0, 0.0] if g in (0, 3) else [1.0, 0.0])
    assert [g.group_id for g in results[0].groups] == [1, 2]
    assert results[-1].counts.filtered == 2


async def test_a_group_lost_to_infrastructure_is_failed_and_not_a_reward():
    results, _, _, _ = await drive(
        lambda g: InfrastructureError("engine died") if g == 1 else [1.0, 0.0]
    )
    assert [g.group_id for g in results[0].groups] == [0, 2]
    assert results[-1].counts.failed == 1
    assert any("engine died" in e for r in results for g in r.finished for e in g.errors)


async def test_the_ledger_accounts_for_every_group_of_a_run():
    ledger = Ledger(groups_per_step=2, max_staleness=1)
    rewards = {1: InfrastructureError("engine died"), 2: [0.0, 0.0]}
    results, _, _, _ = await drive(lambda g: rewards.get(g, [1.0, 0.0]), ledger=ledger)
    view = ledger.view()
    assert view.problems() == []
    assert {step: [r.ticket for r in rows] for step, rows in view.steps().items()} == {
        r.step: [g.group_id for g in r.groups] for r in results
    }
    assert [r.admission_version for r in view.steps()[3]] == [
        g.admission_version for g in results[2].groups
    ]
    assert (view.rows[1].state, view.rows[1].reason) == (GroupState.FAILED, "engine died")
    assert view.rows[2].state is GroupState.FILTERED
    assert [row.question_id for row in view.rows] == [f"q{i}" for i in range(len(view.rows))]
    counts = results[-1].counts
    assert (view.counts()[GroupState.TRAINED], counts.trained) == (6, 6)


class NotingJournal(NoJournal):
    def __init__(self, events):
        self.events = events

    def record(self, entry):
        self.events.append(("journal", entry.step, entry.minibatch, entry.version))

    def published(self, version, digest):
        self.events.append(("published", version, digest))


async def test_a_batch_is_in_the_journal_before_the_learner_sees_it_and_its_digest_after():
    events = []
    await drive(steps=2, groups_per_step=4, minibatches_per_step=2, max_staleness=0, events=events)
    assert events == [
        ("journal", 1, 0, 0),
        "trained",
        ("journal", 1, 1, 0),
        "trained",
        ("published", 1, "digest 1"),
        ("journal", 2, 0, 1),
        "trained",
        ("journal", 2, 1, 1),
        "trained",
        ("published", 2, "digest 2"),
    ]


async def test_groups_lost_one_after_another_end_the_run_with_the_reason():
    with pytest.raises(InfrastructureError, match=r"8 groups in a row were lost.*engine died"):
        await drive(lambda g: InfrastructureError("engine died") if g > 5 else [1.0, 0.0], steps=9)


async def test_a_pool_that_is_lost_for_good_ends_the_run_at_once_and_by_name():
    never = asyncio.Event()

    async def lost():
        raise InfrastructureError("no retriever actor is left in service")

    async def others():
        await never.wait()

    async def watch_losses():  # as the stack does, of all pools
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(others())
            tasks.create_task(lost())

    with pytest.raises(InfrastructureError, match="no retriever actor is left in service"):
        async with asyncio.timeout(10):
            await drive(delays=lambda g: 3600, watch_losses=watch_losses)
    _, _, _, learners = await drive(watch_losses=others)  # it ends with the run
    assert learners.published == [1, 2, 3]


async def test_no_step_begins_that_would_end_after_the_time_limit(monkeypatch):
    clock = itertools.count(step=10.0)  # each look at the clock is 10 s later than the last
    monkeypatch.setattr("pipeline.driver.time", SimpleNamespace(monotonic=lambda: next(clock)))
    results, _, _, _ = await drive(steps=20, minutes=2.0)
    assert 1 < len(results) < 20
    assert results[-1].elapsed_s <= 120 < results[-1].elapsed_s + results[-1].step_s


@pytest.mark.parametrize("deterministic_seed", [None, 3])
async def test_seconds_in_which_only_the_judge_was_waited_for_are_counted(deterministic_seed):
    settings = {"max_staleness": 0, "deterministic_seed": deterministic_seed}
    results, _, _, _ = await drive(judge_slow_s=0.05, **settings)
    assert all(0.04 < r.judge_wait_s <= r.wait_s for r in results)


async def test_a_judge_that_reads_while_others_are_played_is_not_waited_for():
    # group 0 is played long after the judge is done with group 1
    results, _, _, _ = await drive(
        steps=1, max_staleness=0, delays=lambda g: 2 * 10**4 if g == 0 else 0, judge_slow_s=0.01
    )
    assert results[0].wait_s > 0.02
    assert results[0].judge_wait_s < results[0].wait_s - 0.01


async def test_a_dead_judge_leaves_uniform_weights():
    results, _, _, learners = await drive(judge_fails=True, steps=1)
    winner = next(c for c in results[0].credits[0].trajectories if c.success)
    assert np.array_equal(winner.weights, [1.0])
    assert learners.steps[0][0]


class EarlyJudged(Rollouts):
    """Every search round has a verdict when its group arrives, as with ``judge.early``."""

    async def rollout(self, request):
        group = await super().rollout(request)
        verdict = Verdict(utility=1.0, correctness=1.0)
        judged = tuple(t.with_verdicts([verdict]) for t in group.trajectories)
        return replace(group, trajectories=judged)


async def test_what_was_judged_early_is_not_judged_again_and_what_nobody_needs_is_counted(
    monkeypatch,
):
    monkeypatch.setattr("tests.component.test_driver.Rollouts", EarlyJudged)
    outcome = {1: [0.0, 0.0, 0.0]}  # filtered: three rounds for nothing
    results, _, judges, _ = await drive(
        lambda g: outcome.get(g, [1.0, 0.0, 0.0]),
        steps=1, max_staleness=0, groups_per_step=2, group_size=3,
    )  # fmt: skip
    assert judges.judged == []
    assert results[0].wasted_verdicts == 3 + 2 * 2  # and the failures of two groups
    for group in results[0].groups:  # they are trained as if nobody had looked at them
        assert [t.rounds[0].verdict is not None for t in group.trajectories] == [True, False, False]


async def test_many_filtered_groups_in_a_row_stop_the_run_with_advice():
    with pytest.raises(GleanerError, match=r"5 groups in a row had no reward variance.*easier"):
        await drive(lambda g: [0.0, 0.0], max_consecutive_filtered=5)


async def test_minibatches_split_the_groups_of_a_step_and_publish_once():
    results, _, _, learners = await drive(steps=1, groups_per_step=4, minibatches_per_step=2)
    trained = [{s.group_id for s in samples} for samples, _ in learners.steps]
    assert trained == [{0, 1}, {2, 3}]
    assert (learners.published, len(results)) == ([1], 1)


async def test_metrics_that_only_some_minibatches_have_are_joined_over_those():
    results, _, _, _ = await drive(steps=1, groups_per_step=4, minibatches_per_step=2)
    assert results[0].learner == {"loss": 1.0, "only_at_1": 2.0, "only_at_2": 2.0}


async def test_the_proximal_policy_is_asked_before_the_first_of_several_updates():
    recomputed = CorrectionConfig(proximal="recomputed", kind="truncated")
    _, _, _, learners = await drive(
        steps=1, groups_per_step=4, minibatches_per_step=2, correction=recomputed
    )
    assert learners.asked == [("current", 0), ("current", 0)]
    first = learners.steps[0][0][0]
    assert set(first.proximal_logprobs.tolist()) == {-1.0}


async def test_with_a_single_update_the_proximal_policy_costs_no_call():
    recomputed = CorrectionConfig(proximal="recomputed", kind="truncated")
    _, _, _, learners = await drive(steps=1, correction=recomputed)
    assert learners.asked == []
    assert learners.steps[0][0][0].proximal_logprobs is None


async def test_kl_in_the_reward_asks_the_reference_before_credit_and_sends_none_with_it():
    penalised = AlgorithmConfig(scale="none", kl_coef=0.5, kl_in="reward", kl_estimator="k1")
    results, _, _, learners = await drive(steps=1, groups_per_step=1, algorithm=penalised)
    assert learners.asked == [("reference", 0)]
    won, lost = results[0].credits[0].trajectories
    # The two trajectories have the same tokens, so the same penalty: it cancels in the group.
    assert (won.advantage, lost.advantage) == pytest.approx((0.5, -0.5))
    assert learners.steps[0][0][0].ref_logprobs is None


async def test_kl_in_the_loss_sends_the_references_opinion_with_every_sample():
    _, _, _, learners = await drive(
        steps=1, groups_per_step=1, algorithm=AlgorithmConfig(kl_coef=0.5)
    )
    assert learners.asked == [("reference", 0)]
    assert all(s.ref_logprobs is not None for s in learners.steps[0][0])


async def test_without_a_baseline_groups_of_equal_rewards_are_trained():
    plain = AlgorithmConfig(credit="uniform", baseline="none", scale="batch")
    results, _, _, _ = await drive(
        lambda g: [float(g % 2)] * 2, steps=1, groups_per_step=2, algorithm=plain
    )
    assert results[0].counts.filtered == 0
    advantages = [t.advantage for t in results[0].credits[0].trajectories]
    # rewards 0 0 1 1: mean 1/2, sample deviation 1/sqrt(3)
    assert advantages == pytest.approx([-(3**0.5) / 2] * 2 + [3**0.5 / 2] * 2, rel=1e-5)


async def test_an_error_in_a_rollout_task_ends_the_run_instead_of_hanging_it():
    with pytest.raises(ExceptionGroup) as raised:
        await drive(lambda g: ValueError("a bug"))
    assert raised.group_contains(ValueError, match="a bug")
