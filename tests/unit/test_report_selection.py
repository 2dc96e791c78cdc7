"""The page shows a telling choice: won and lost, before and after, the same question twice."""

from collections import Counter

from pipeline.report import choose_trajectories
from pipeline.types import Trajectory
from tests.support.report_run import episode, question


def play(skills: dict[int, tuple[float, ...]]) -> list[Trajectory]:
    """``skills[number]`` are the samples of question ``number``, of 1 + number % 3 hops."""
    return [
        episode(question(number, 1 + number % 3), sample_id=s, group_id=number, skill=skill)
        for number, samples in skills.items()
        for s, skill in enumerate(samples)
    ]


def test_a_question_lost_before_and_won_after_is_shown_with_both_tries_side_by_side():
    before = play({0: (0.1,), 1: (0.1,), 2: (1.0,), 5: (0.1,)})
    after = play({0: (0.1,), 1: (1.0,), 2: (1.0,), 5: (0.1,)})
    chosen = choose_trajectories(before, after, count=2)
    assert [(c.phase, c.trajectory.question.id, c.trajectory.correct) for c in chosen] == [
        ("before", "test-0001", False),
        ("after", "test-0001", True),
    ]


def test_eight_of_a_run_have_all_six_kinds():
    mixed = {number: (1.0, 0.1) for number in range(12)}
    chosen = choose_trajectories(play(mixed), play(mixed), play(mixed), count=8)
    kinds = Counter((c.phase, c.trajectory.correct) for c in chosen)
    assert len(chosen) == 8
    assert set(kinds) == {
        (phase, won) for phase in ("before", "after", "training") for won in (True, False)
    }


def test_numbers_of_hops_are_mixed():
    lost = {number: (0.1,) for number in range(9)}
    chosen = choose_trajectories(play(lost), [], count=3)
    assert {c.trajectory.question.hops for c in chosen} == {1, 2, 3}


def test_groups_that_won_and_lost_come_first_since_they_have_an_advantage():
    chosen = choose_trajectories(play({0: (0.1, 0.1), 3: (0.1, 1.0)}), [], count=1)
    assert chosen[0].trajectory.question.id == "test-0003"


def test_missing_kinds_are_filled_from_the_others_and_nothing_is_shown_twice():
    before = play({number: (0.1,) for number in range(5)})
    chosen = choose_trajectories(before, [], count=8)
    assert len(chosen) == 5
    assert len({id(c.trajectory) for c in chosen}) == 5
