"""The real driver on a real pool of judge actors that fail: counted, clear, and nothing is lost.

Rollouts are scripted, so that every group has a success to judge; the learner remembers what it was
given. Whole commands: test_train_with_judges.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.cluster import running_cluster
from actors.judge import Judge, judge_environment
from actors.placement import PlacementPlan
from actors.pool import ActorPool, PoolSpec
from actors.ray_pools import RayJudgePool
from pipeline.config import (
    AlgorithmConfig,
    BufferConfig,
    ClusterConfig,
    CurriculumConfig,
    TrainerConfig,
)
from pipeline.credit import TrajectoryCredit, build_algorithm
from pipeline.curriculum import Curriculum
from pipeline.driver import Driver, StepResult
from pipeline.errors import StoppedError
from pipeline.failpoints import VARIABLE
from pipeline.journal import NoJournal
from pipeline.judging.config import JudgeConfig
from pipeline.judging.traces import LabelledTrace
from pipeline.judging.watch import JudgeWatch
from pipeline.ledger import Ledger
from pipeline.ledger_view import GroupState, LedgerView, read_ledger
from pipeline.pools import PublishReport
from pipeline.step_record import RunMeter
from pipeline.types import Group, Question, RolloutRequest, Sample, Sampling, Verdict
from tests.support.judge_server import JudgeServer, refusal
from tests.support.scripted import search_round, trajectory
from tests.support.traces import traces

STEPS, GROUPS = 3, 2
ROUNDS = 2  # search rounds of each trajectory; one of a group's two is a success
CALL_TOKENS = 15  # of an answer of the server
LIMIT_S = 300


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    config = ClusterConfig(address="local", num_cpus=2, object_store_gib=0.1)
    with running_cluster(config, PlacementPlan(actors=(), bundles=())) as cluster:
        yield cluster


class Rollouts:
    """A success and a failure a group, of two rounds each: the first finds what is needed."""

    async def rollout(self, request: RolloutRequest) -> Group:
        rounds = (
            search_round("capital", ["1"], reasoning="Next: capital."),
            search_round("weather", ["2"], reasoning="Next: capital."),
            search_round(answer="x"),
        )
        return Group(
            group_id=request.group_id,
            question=request.question,
            trajectories=tuple(
                trajectory(
                    *rounds,
                    asked=request.question,
                    reward=reward,
                    group_id=request.group_id,
                    sample_id=i,
                )
                for i, reward in enumerate((1.0, 0.0))
            ),
            admission_version=request.admission_version,
        )

    async def rollout_wave(self, requests: Sequence[RolloutRequest], seed: int) -> list[Group]:
        raise NotImplementedError

    async def stats(self) -> Mapping[str, float]:
        return {}


class Learns:
    """Learner and publisher."""

    async def train_step(
        self, samples: Sequence[Sample], normaliser: float, version: int = 0
    ) -> dict[str, float]:
        return {"loss": 1.0}

    async def logprobs(self, samples: Sequence[Sample], which: str) -> list[Any]:
        raise NotImplementedError

    async def publish(self, version: int) -> PublishReport:
        return PublishReport(
            version=version, digest=str(version), probe_error=0.0, seconds=0.0, stall_s=0.0
        )


@dataclass
class Run:
    """What came of a run of ``STEPS`` steps."""

    results: list[StepResult] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    view: LedgerView = field(init=False)
    stopped: str = ""  # the message of a run that stopped itself

    def total(self, metric: str) -> float:
        return sum(m[metric] for m in self.metrics)

    @property
    def wins(self) -> list[tuple[TrajectoryCredit, list[Verdict | None]]]:
        """Credit and verdicts of the trained successes."""
        credits = {
            c.group_id: c
            for r in self.results
            for of_batch in r.credits
            for c in of_batch.trajectories
            if c.success
        }
        return [
            (credits[g.group_id], [r.verdict for r in g.trajectories[0].search_rounds])
            for r in self.results
            for g in r.groups
        ]


Train = Callable[..., Any]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    async def train(
        config: JudgeConfig,
        canaries: Sequence[LabelledTrace] = (),
        meanwhile: Callable[[ActorPool], Any] | None = None,
    ) -> Run:
        pool = await ActorPool.start(
            PoolSpec(
                name="judge",
                factory=Judge,
                members=[{"config": config}],
                num_cpus=0,
                environment=judge_environment(config),
                start_timeout_s=120,
                request_timeout_s=60,
                max_retries=2,
                max_restarts=-1,
            )
        )
        try:
            async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
                if meanwhile is not None:
                    tasks.create_task(meanwhile(pool))
                return await run_on(pool, config, canaries, tmp_path / "ledger.sqlite")
        finally:
            await pool.stop()

    return train


async def run_on(
    pool: ActorPool, config: JudgeConfig, canaries: Sequence[LabelledTrace], path: Path
) -> Run:
    run, meter = Run(), RunMeter()
    watch = JudgeWatch(RayJudgePool(pool, config.groups_at_once), config, canaries, seed=0)
    ledger = Ledger(path, groups_per_step=GROUPS, max_staleness=1)

    async def on_step(result: StepResult) -> None:
        result = replace(result, judge=await watch.metrics())
        run.results.append(result)
        run.metrics.append(meter.step(result).metrics)

    driver = Driver(
        rollout=Rollouts(),
        judge=watch,
        learner=Learns(),
        publisher=Learns(),
        algorithm=build_algorithm(AlgorithmConfig()),
        questions=Curriculum(
            (
                Question(id=f"q{n}", text=f"Capital {n}?", answers=("x",), evidence=("1",))
                for n in itertools.count()
            ),
            10**6,
            CurriculumConfig(),
        ),
        sampling=Sampling(),
        trainer=TrainerConfig(steps=STEPS),
        buffer=BufferConfig(groups_per_step=GROUPS, group_size=2, max_staleness=1),
        ledger=ledger,
        journal=NoJournal(),
        on_step=on_step,
    )
    try:
        await driver.run()
    except StoppedError as error:
        run.stopped = str(error)
    ledger.end(failed=bool(run.stopped))
    run.view = read_ledger(path)
    assert run.view.problems() == []
    steps = run.view.steps()
    assert all(len(rows) == GROUPS for rows in steps.values())
    assert [len(steps)] == [len(run.results)] or run.stopped  # then the last may lack its record
    assert not run.view.counts()[GroupState.FAILED]
    return run


def openai(server: JudgeServer, **changes: Any) -> JudgeConfig:
    settings: dict[str, Any] = {
        "name": "openai",
        "model": "judge",
        "base_url": server.base_url,
        "call_retries": 0,
        "concurrency": 1,
    }
    return JudgeConfig(**{**settings, **changes})


def dies_after(server: JudgeServer, answers: int) -> None:
    """From then on the endpoint is out of order."""
    server.judge = lambda shown: (int(shown["query"] == "capital"), 1)
    server.every = lambda asked: (
        refusal(500, "out of order") if len(server.judged) > answers else None
    )


async def test_when_the_endpoint_dies_training_goes_on_with_uniform_weights_and_counts_it(
    server: JudgeServer, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = ROUNDS * GROUPS + 1  # so that one round of two has a verdict
    dies_after(server, answers)
    run = await train(openai(server, stop_after_failures=0))
    assert (len(run.results), run.stopped) == (STEPS, "")
    judged = [(c, v) for c, v in run.wins if None not in v]
    unjudged = [(c, v) for c, v in run.wins if None in v]
    assert judged and {v.count(None) for _, v in unjudged} == {1, 2}
    assert all(c.weights.tolist() == [2.0, 0.0] for c, _ in judged)
    assert all(c.weights.tolist() == [1.0, 1.0] for c, _ in unjudged)
    assert run.total("judge/failures") == sum(v.count(None) for _, v in unjudged)
    assert run.total("judge/failed_calls") >= run.total("judge/failures")
    assert run.total("judge/calls") == answers
    last = run.metrics[-1]
    assert last["credit/failed_verdict_share"] > 0
    assert "judge-0 warns: a judge gave no answer: judge@http://127.0.0.1" in caplog.text
    assert "out of order" in caplog.text


async def test_a_spent_budget_stops_the_run_with_the_remedy_and_its_groups_can_go_on(
    server: JudgeServer, train: Train
) -> None:
    calls = ROUNDS * GROUPS + 1  # in the second step
    run = await train(openai(server, budget_tokens=CALL_TOKENS * calls))
    assert "the judge's budget is spent" in run.stopped
    assert "judge.budget_tokens" in run.stopped and "resume=auto" in run.stopped
    assert len(server.judged) == calls
    assert len(run.results) < STEPS
    states = {row.state for row in run.view.rows}
    assert GroupState.ROLLING in states  # what was being judged
    assert all(state.in_flight for state in states - {GroupState.TRAINED})


async def test_a_spent_budget_that_degrades_trains_on_without_verdicts(
    server: JudgeServer, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls = ROUNDS * GROUPS
    run = await train(
        openai(
            server, budget_tokens=CALL_TOKENS * calls, on_budget="degrade", stop_after_failures=2
        )
    )
    assert (len(run.results), run.stopped) == (STEPS, "")
    assert len(server.judged) == calls == run.total("judge/calls")
    assert run.total("judge/rounds") == calls
    assert run.total("judge/failures") == STEPS * GROUPS * ROUNDS - calls
    assert run.total("judge/over_budget") >= run.total("judge/failures")
    assert run.total("judge/failed_calls") == 0
    assert "from now on rounds stay without verdicts" in caplog.text


async def test_a_judge_that_is_killed_while_it_judges_comes_back_and_no_verdict_is_lost(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "judge").write_text("slow 300")
    monkeypatch.setenv(VARIABLE, str(faults))
    killed: list[int] = []

    async def kill(pool: ActorPool) -> None:
        while not pool.members[0].load:  # it is asked
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert pool.members[0].load
        (faults / "judge").unlink()
        killed.append(pool.members[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    run = await train(JudgeConfig(), meanwhile=kill)
    assert (len(run.results), run.stopped) == (STEPS, "")
    assert killed and not psutil.pid_exists(killed[0])
    assert run.total("judge/failures") == 0
    assert run.total("judge/rounds") == STEPS * GROUPS * ROUNDS
    assert all(c.weights.tolist() == [2.0, 0.0] for c, _ in run.wins)


async def test_a_judge_that_errs_is_found_out_by_its_canaries(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = JudgeConfig(flip_probability=1.0, canary_every=1, canary_window=4)
    run = await train(config, canaries=traces())
    assert (len(run.results), run.stopped) == (STEPS, "")
    last = run.metrics[-1]
    assert last["judge/canary_alarm"] == 1.0
    assert last["judge/canary_u_agreement"] == last["judge/canary_v_agreement"] == 0.0
    assert run.total("judge/canary_rounds") >= 4
    assert run.total("judge/rounds") == STEPS * GROUPS * ROUNDS  # it only warns
    assert caplog.text.count("(judge.on_canary_alarm=warn)") == 1


async def test_an_alarm_that_is_to_stop_the_run_does(train: Train) -> None:
    config = JudgeConfig(
        flip_probability=1.0, canary_every=1, canary_window=4, on_canary_alarm="stop"
    )
    run = await train(config, canaries=traces())
    assert "the judge agrees with the labels of its canaries in 0% (u) and 0% (v)" in run.stopped
    assert "resume=auto" in run.stopped
    assert len(run.results) < STEPS


async def test_canaries_that_a_good_judge_is_asked_raise_no_alarm(train: Train) -> None:
    config = JudgeConfig(canary_every=1, canary_window=4, on_canary_alarm="stop")
    run = await train(config, canaries=traces())
    assert (len(run.results), run.stopped) == (STEPS, "")
    last = run.metrics[-1]
    assert (last["judge/canary_alarm"], last["judge/canary_u_agreement"]) == (0.0, 1.0)
