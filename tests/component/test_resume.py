"""The real driver, buffer and ledger, killed at any moment and resumed: no group is trained twice,
none is skipped, and the learner's weights are those of one uninterrupted history."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import AlgorithmConfig, BufferConfig, CurriculumConfig, TrainerConfig
from pipeline.credit import build_algorithm
from pipeline.curriculum import Curriculum
from pipeline.driver import Driver, Start, StepResult
from pipeline.journal import JournalEntry
from pipeline.ledger import Ledger
from pipeline.ledger_view import GroupState, LedgerView, read_ledger
from pipeline.pools import PublishReport
from pipeline.types import Group, Question, RolloutRequest, Sample, Sampling, Trajectory, Verdict
from tests.support.scripted import played_group, question

STEPS, GROUPS, STALENESS = 6, 2, 1
NUM_QUESTIONS = 8  # an epoch is over before the run is


class Died(Exception):
    """The process is gone at this moment."""


@dataclass
class World:
    """What survives a death: the disk. ``rollouts`` remembers who was played with which weights."""

    ledger_path: Path
    rng: random.Random
    journal: dict[int, JournalEntry] = field(default_factory=dict)  # by step
    published: list[int] = field(default_factory=lambda: [0])
    records: list[StepResult] = field(default_factory=list)
    until_death: int = 10**9

    def moment(self) -> None:
        """One of the moments at which the process may die."""
        self.until_death -= 1
        if self.until_death == 0:
            raise Died


class Pools:
    """All pools of one life of the process. The learner's weights are what it trained, in order."""

    def __init__(self, world: World, weights: list[tuple[int, ...]], version: int) -> None:
        self.world, self.weights, self.version = world, weights, version

    async def rollout(self, request: RolloutRequest) -> Group:
        version = self.version
        for _ in range(length_of(request.question)):
            await asyncio.sleep(0)
        self.world.moment()
        rewards = [0.0, 0.0] if is_hopeless(request.question) else [1.0, 0.0]
        return played_group(request, rewards, version)

    async def judge(self, trajectories: list[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        self.world.moment()
        return [(Verdict(utility=1.0, correctness=1.0),) for _ in trajectories]

    async def train_step(
        self, samples: list[Sample], normaliser: float, version: int = 0
    ) -> dict[str, float]:
        self.world.moment()
        self.weights.append(tuple(sorted({s.group_id for s in samples})))
        self.world.moment()
        return {}

    async def publish(self, version: int) -> PublishReport:
        self.world.moment()
        self.version = version
        return PublishReport(version=version, digest="", probe_error=0.0, seconds=0.0, stall_s=0.0)

    def record(self, entry: JournalEntry) -> None:
        self.world.moment()
        self.world.journal[entry.step] = entry

    def published(self, version: int, digest: str) -> None:
        self.world.moment()
        self.world.published.append(version)


def asked() -> Iterator[Question]:
    for n in itertools.count():
        yield replace(question(f"question {n}"), id=f"q{n % NUM_QUESTIONS}")


def length_of(asked: Question) -> int:
    """How long the group takes: one question in four is a straggler."""
    return 40 if int(asked.id[1:]) % 4 == 0 else int(asked.id[1:]) % 3


def is_hopeless(asked: Question) -> bool:
    return int(asked.id[1:]) % 5 == 2


async def live(world: World, order: str, skip: int) -> list[tuple[int, ...]]:
    """One life of the process, from what the disk holds; the weights it ends with."""
    begun = world.ledger_path.exists()
    ledger = Ledger(
        world.ledger_path, groups_per_step=GROUPS, max_staleness=STALENESS, resumed=begun
    )
    version = world.published[-1]
    questions, start = Curriculum(asked(), NUM_QUESTIONS, CurriculumConfig(skip_after=skip)), None
    if begun:
        ledger.resume(version)
        seen = questions.resume(ledger.view().rows, "the run")
        queued = [r.ticket for r in ledger.view().rows if r.state is GroupState.QUEUED]
        start = Start(version=version, reissue={ticket: seen[ticket] for ticket in queued})
    replayed = [
        tuple(sorted({s.group_id for s in world.journal[step].samples}))
        for step in range(1, version + 1)
    ]
    pools = Pools(world, replayed, version)

    async def on_step(result: StepResult) -> None:
        world.records.append(result)
        world.moment()

    driver = Driver(
        rollout=pools, judge=pools, learner=pools, publisher=pools, journal=pools,  # type: ignore[arg-type]
        algorithm=build_algorithm(AlgorithmConfig()),
        questions=questions,
        sampling=Sampling(),
        trainer=TrainerConfig(steps=STEPS),
        buffer=BufferConfig(
            groups_per_step=GROUPS, max_staleness=STALENESS, group_size=2, order=order
        ),
        ledger=ledger,
        on_step=on_step,
        start=start,
    )  # fmt: skip
    try:
        await driver.run()
        ledger.end()
    finally:
        ledger._database.close()  # a process that dies does no more than this
    return pools.weights


def survive(world: World, order: str, deaths: int, skip: int = 0) -> list[tuple[int, ...]]:
    for _ in range(deaths):
        world.until_death = world.rng.randint(1, 40)
        try:
            asyncio.run(live(world, order, skip))
        except* Died:
            pass
        else:
            break
    world.until_death = 10**9
    return asyncio.run(live(world, order, skip))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 100_000),
    deaths=st.integers(0, 6),
    order=st.sampled_from(["admission", "deadline"]),
    skip=st.integers(0, 1),
)
def test_whenever_the_process_dies_each_group_is_trained_once_and_none_is_skipped(
    seed: int, deaths: int, order: str, skip: int
) -> None:
    with TemporaryDirectory() as directory:
        world = World(Path(directory) / "ledger.sqlite", random.Random(seed))
        weights = survive(world, order, deaths, skip)
        view = read_ledger(world.ledger_path)
    assert view.problems() == []  # steps in a row, staleness bounded, everything at its end
    in_ledger = [tuple(sorted(r.ticket for r in rows)) for rows in view.steps().values()]
    assert weights == in_ledger
    assert weights == [tuple(sorted(world.journal[step].groups)) for step in view.steps()]
    trained = [ticket for step in weights for ticket in step]
    assert len(trained) == len(set(trained)) == STEPS * GROUPS
    ids = [row.question_id for row in view.rows]
    if skip:
        assert is_subsequence(ids, (q.id for q in asked()))
        hopeless = Counter(i for i in ids if is_hopeless(replace(question(), id=i)))
        assert max(hopeless.values(), default=0) <= 2  # the second: admitted before the first ended
    else:
        assert ids == [q.id for q in itertools.islice(asked(), len(ids))]
    for result in world.records:
        for group in result.groups:
            assert 0 <= result.start_version - group.admission_version <= STALENESS


def is_subsequence(found: list[str], of: Iterator[str]) -> bool:
    return all(any(other == one for other in of) for one in found)


def trained_in_admission_order(view: LedgerView) -> list[int]:
    return [row.ticket for row in view.rows if row.state is GroupState.TRAINED]


@pytest.mark.parametrize("seed", range(5))
def test_deaths_do_not_favour_questions_that_are_answered_quickly(
    tmp_path: Path, seed: int
) -> None:
    """In admission order the trained questions are the first ones, stragglers among them."""
    world = World(tmp_path / "ledger.sqlite", random.Random(seed))
    survive(world, "admission", deaths=5)
    trained = trained_in_admission_order(read_ledger(world.ledger_path))
    first = [i for i in range(trained[-1] + 1) if not is_hopeless(replace(question(), id=f"q{i}"))]
    late = [t for t in first if t not in trained]
    assert len(late) <= 2 * GROUPS  # re-issued after the death of younger, finished ones
    stragglers = sum(length_of(replace(question(), id=f"q{i}")) == 40 for i in trained)
    assert stragglers >= sum(length_of(replace(question(), id=f"q{i}")) == 40 for i in first) - 2
