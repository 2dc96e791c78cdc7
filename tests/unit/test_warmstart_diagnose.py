"""Each failed trajectory gets the one kind of mistake that a reader would give it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.types import Passage, Round, Status, Trajectory
from pipeline.warmstart.diagnose import (
    Mistake,
    diagnose,
    mistake_table,
    redundant_search_share,
)
from tests.support.warmstart_world import World

WORLD = World()
ASKED = WORLD.questions[-3]  # town -> land -> river
HOME, WATER = ASKED.hops


def play(*queries: str, answer: str | None = None, status: Status | None = None) -> Trajectory:
    rounds = [_round(query=q, passages=WORLD.search(q)) for q in queries]
    rounds.append(_round(answer=answer) if answer else _round(query="one more"))
    return Trajectory(
        question=ASKED.question,
        group_id=0,
        sample_id=0,
        rounds=tuple(rounds),
        status=status or (Status.ANSWERED if answer else Status.OUT_OF_ROUNDS),
        reward=float(answer == WATER.answer),
    )


def _round(
    query: str | None = None, answer: str | None = None, passages: tuple[Passage, ...] = ()
) -> Round:
    ids = np.zeros(1, np.int32)
    return Round(
        context_ids=ids,
        token_ids=ids,
        logprobs=np.zeros(1, np.float32),
        versions=ids,
        text="",
        query=query,
        answer=answer,
        passages=passages,
    )


@pytest.mark.parametrize(
    ("trajectory", "mistake"),
    [
        (play(HOME.query, WATER.query, answer=WATER.answer), None),
        (play(HOME.query, answer="unknown"), Mistake.GAVE_UP),
        (play(HOME.query, answer=HOME.answer), Mistake.PREMATURE),
        (play(answer=HOME.subject), Mistake.PREMATURE),
        (play(HOME.query, answer="Atlantis"), Mistake.UNSUPPORTED),
        (play(WORLD.hops["capital", HOME.answer].query, answer="capital"), Mistake.OFF_RELATION),
        (play(HOME.query, WATER.query, answer="river"), Mistake.MISREAD),
        (play(HOME.query, WATER.query, WATER.query), Mistake.REDUNDANT),
        (play(HOME.query, WATER.subject), Mistake.FAILED_SEARCH),
        (play(HOME.query, status=Status.TRUNCATED), Mistake.MALFORMED),
    ],
)
def test_a_mistake_is_named(trajectory: Trajectory, mistake: Mistake | None) -> None:
    assert diagnose(trajectory) is mistake


def test_shares_are_of_mistakes_and_redundancy_is_of_search_rounds() -> None:
    played = [
        play(HOME.query, WATER.query, answer=WATER.answer),
        play(HOME.query, answer="unknown"),
        play(HOME.query, answer="unknown"),
        play(HOME.query, HOME.query, answer="Atlantis"),
    ]
    assert mistake_table(played) == {Mistake.GAVE_UP: 2 / 3, Mistake.UNSUPPORTED: 1 / 3}
    assert redundant_search_share(played) == 1 / 6
