"""Which questions are asked: those that taught nothing are passed over for a while, also after a
resumption."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pipeline.commands.train import question_stream
from pipeline.config import CurriculumConfig
from pipeline.curriculum import Curriculum
from pipeline.errors import UserError
from pipeline.ledger_view import GroupState, LedgerRow
from tests.support.scripted import question

A, B, C = (replace(question(), id=i) for i in "abc")


def curriculum(skip_after: int, skip_for: int = 100) -> Curriculum:
    config = CurriculumConfig(skip_after=skip_after, skip_for=skip_for)
    return Curriculum(itertools.cycle([A, B, C]), 3, config)


def asked(source: Curriculum, tickets: range, filtered: str = "") -> str:
    """Ask one after the other; groups of ``filtered`` teach nothing."""
    ids = []
    for ticket in tickets:
        chosen = source.next(ticket)
        ids.append(chosen.id)
        source.ended(ticket, chosen, filtered=chosen.id in filtered)
    return "".join(ids)


def test_by_default_every_question_is_asked_in_its_turn() -> None:
    assert asked(curriculum(0), range(9), "abc") == "abcabcabc"


def test_a_question_that_was_filtered_twice_in_a_row_rests() -> None:
    source = curriculum(2)
    assert asked(source, range(10), "b") == "abcabcacac"
    assert source.skipped == 2  # once an epoch


def test_it_is_asked_again_after_a_while_and_rests_again_if_nothing_has_changed() -> None:
    # b is filtered as 1 and 4; it rests until ticket 9 is the fifth after that
    assert asked(curriculum(2, skip_for=4), range(13), "b") == "abcabcacabcac"


def test_a_group_that_teaches_something_begins_the_count_anew() -> None:
    source = curriculum(2)
    outcomes = iter([True, False, True, True, True])
    ids = []
    for ticket in range(14):
        chosen = source.next(ticket)
        ids.append(chosen.id)
        source.ended(ticket, chosen, filtered=chosen == B and next(outcomes))
    assert "".join(ids) == "abcabcabcabcac"


def test_where_all_rest_one_is_asked_all_the_same() -> None:
    assert asked(curriculum(1), range(6), "abc") == "abcabc"


def row(ticket: int, question_id: str, state: GroupState = GroupState.TRAINED) -> LedgerRow:
    return LedgerRow(
        ticket=ticket, question_id=question_id, admission_version=0, state=state, step=None,
        reason="", admitted_at=0.0, buffered_at=None, ended_at=None, issues=1, rolled_back=0,
    )  # fmt: skip


def test_a_resumed_run_goes_on_with_the_questions_that_an_uninterrupted_one_asks() -> None:
    whole = curriculum(2)
    ids = asked(whole, range(12), "b")
    rows = [
        row(i, q, GroupState.FILTERED if q == "b" else GroupState.TRAINED)
        for i, q in enumerate(ids[:8])
    ]
    resumed = curriculum(2)
    assert "".join(q.id for q in resumed.resume(rows, "the run")) == ids[:8]
    assert asked(resumed, range(8, 12), "b") == ids[8:]


def test_where_all_rested_a_resumed_run_is_at_the_same_place_whatever_the_order() -> None:
    def shuffled() -> Curriculum:
        stream = question_stream([A, B, C], seed=3)
        return Curriculum(stream, 3, CurriculumConfig(skip_after=1, skip_for=100))

    whole = shuffled()
    ids = asked(whole, range(20), "abc")  # from the second epoch on all of them rest
    rows = [row(i, q, GroupState.FILTERED) for i, q in enumerate(ids[:11])]
    resumed = shuffled()
    assert "".join(q.id for q in resumed.resume(rows, "the run")) == ids[:11]
    assert asked(resumed, range(11, 20), "abc") == ids[11:]


def test_questions_of_another_run_are_refused() -> None:
    rows = [row(0, "a"), row(1, "c")]
    with pytest.raises(UserError, match="group 1 of the run in outputs/x was of question 'c', now"):
        curriculum(0).resume(rows, "outputs/x")
    assert [q.id for q in curriculum(1).resume(rows, "outputs/x")] == ["a", "c"]  # b was resting
    with pytest.raises(UserError, match="group 1 of the run in outputs/x was of question 'z'"):
        curriculum(1).resume([row(0, "a"), row(1, "z")], "outputs/x")
