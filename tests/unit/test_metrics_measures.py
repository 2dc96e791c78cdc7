"""Pure measures of trajectories, on episodes small enough to count by hand."""

import math

import pytest

from pipeline import metrics
from pipeline.types import Passage, Round, Status, Trajectory, Verdict
from tests.support.report_run import question, round_of


def found(*doc_ids: str) -> tuple[Passage, ...]:
    return tuple(Passage(doc_id=d, title=d, text=d) for d in doc_ids)


def played(
    *rounds: Round, status: Status = Status.ANSWERED, reward: float = 1.0, hops: int = 2
) -> Trajectory:
    return Trajectory(
        question=question(7, hops),
        group_id=0,
        sample_id=0,
        rounds=rounds,
        status=status,
        reward=reward,
    )


ANSWER = round_of(answer="x", num_tokens=8)


def test_a_round_is_redundant_when_all_its_passages_were_seen_before():
    trajectory = played(
        round_of(query="q1", passages=found("a", "b")),
        round_of(query="q2", passages=found("b", "a")),
        round_of(query="q3", passages=found("b", "c")),
        ANSWER,
    )
    assert metrics.redundant_rounds(trajectory) == (False, True, False)


def test_a_search_that_found_nothing_is_redundant():
    assert metrics.redundant_rounds(played(round_of(query="q"), ANSWER)) == (True,)


def test_redundant_searches_are_a_share_of_rounds_not_a_mean_of_trajectories():
    once = played(round_of(query="q", passages=found("a")), ANSWER)
    twice_the_same = played(
        *[round_of(query="q", passages=found("a")) for _ in range(3)],
        ANSWER,
    )
    # 0 of 1 and 2 of 3: by rounds 2/4, by trajectories it would be 1/3
    assert metrics.redundant_searches([once, twice_the_same]) == 0.5


def test_a_query_in_the_last_allowed_round_was_issued_but_never_searched():
    trajectory = played(
        round_of(query="q1", passages=found("a")),
        round_of(query="q2"),
        status=Status.OUT_OF_ROUNDS,
        reward=0.0,
    )
    assert metrics.searches_per_question([trajectory]) == 2
    assert metrics.redundant_rounds(trajectory) == (False,)


def test_a_search_whose_observation_no_longer_fitted_was_made():
    trajectory = played(
        round_of(query="q1", passages=found("a")),
        round_of(query="q2", passages=found("a")),
        status=Status.TRUNCATED,
        reward=0.0,
    )
    assert metrics.redundant_rounds(trajectory) == (False, True)


def test_evidence_recall_counts_needed_passages_once():
    half = played(round_of(query="q", passages=found("7-0", "other", "7-0")), ANSWER)
    assert metrics.evidence_recall(half) == 0.5


def test_measures_of_nothing_are_nan_and_left_out_of_the_record():
    assert math.isnan(metrics.exact_match([]))
    assert math.isnan(metrics.redundant_searches([played(ANSWER)]))
    assert "rollout/redundant_searches" not in metrics.trajectory_metrics([played(ANSWER)])


def test_trajectory_metrics_by_hand():
    won = played(round_of(query="q", passages=found("7-0", "7-1"), num_tokens=12), ANSWER)
    gave_up = played(round_of(num_tokens=4), status=Status.NO_ACTION, reward=-0.1)
    assert metrics.trajectory_metrics([won, gave_up]) == pytest.approx(
        {
            "reward/mean": 0.45,
            "reward/exact_match": 0.5,
            "rollout/trajectories": 2.0,
            "rollout/searches_per_question": 0.5,
            "rollout/redundant_searches": 0.0,
            "rollout/evidence_recall": 0.5,
            "rollout/no_answer": 0.5,
            "rollout/truncated": 0.0,
            "rollout/tokens_per_trajectory": 12.0,  # (12 + 8 + 4) / 2
        }
    )


def test_staleness_is_counted_per_token_of_the_policy():
    old_and_young = played(
        round_of(query="q", num_tokens=3, version=4), round_of(answer="x", num_tokens=1, version=5)
    )
    counts = metrics.staleness_counts([old_and_young], train_version=6)
    assert counts == {2: 3, 1: 1}
    assert metrics.staleness_metrics(counts) == {
        "buffer/staleness_mean": 7 / 4,
        "buffer/staleness_max": 2.0,
    }


def test_unjudged_rounds_are_not_judged_as_zero():
    judged = played(
        round_of(query="q1"), round_of(query="q2"), round_of(query="q3"), ANSWER
    ).with_verdicts([Verdict(utility=1, correctness=1), None, Verdict(utility=1, correctness=0)])
    assert metrics.judge_metrics([judged]) == {
        "judge/rounds": 2.0,
        "judge/u_mean": 1.0,
        "judge/v_mean": 0.5,
        "judge/p_mean": 0.5,
    }
