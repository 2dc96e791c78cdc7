"""Exact match after SQuAD normalisation."""

import pytest

from pipeline.episode.rewards import OutcomeReward, exact_match, f1_score, normalize_answer
from pipeline.types import Status
from tests.support.scripted import question


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("the  N'Djamena!", "N'Djamena", True),
        ("A Tale of Two Cities", "tale of two cities", True),
        ("1,200", "1200", True),
        ("theatre", "atre", False),  # articles go as words only
        ("Paris France", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_exact_match_ignores_case_punctuation_articles_and_spaces(answer, golden, expected):
    assert exact_match(answer, [golden]) is expected


def test_any_alias_counts_and_none_never_does():
    assert exact_match("UK", ["United Kingdom", "UK"])
    assert not exact_match(None, ["None"])


def test_f1_of_two_words_against_three_shared_two():
    # precision 2/2, recall 2/3: F1 = 2 * 1 * (2/3) / (5/3) = 0.8
    assert f1_score("New York", ["New York City"]) == pytest.approx(0.8)


def test_normalising_twice_changes_nothing():
    assert normalize_answer(normalize_answer("The U.S.A.")) == normalize_answer("The U.S.A.")


def test_an_unanswered_trajectory_never_earns_a_match():
    assert OutcomeReward()(question(), Status.TRUNCATED, "N'Djamena") == 0.0


def test_silence_must_not_pay():
    with pytest.raises(ValueError, match="must not be positive"):
        OutcomeReward(no_answer_reward=0.1)
