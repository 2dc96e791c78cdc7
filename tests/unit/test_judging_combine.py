"""Several verdicts as one."""

from __future__ import annotations

from itertools import permutations
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judging.combine import Rule, combine
from pipeline.types import Verdict

PROPERTY = settings(max_examples=60)
SIGNAL = st.sampled_from([0.0, 1.0])
VERDICT = st.builds(
    Verdict, utility=SIGNAL, correctness=SIGNAL, rationale=st.sampled_from(["a", "b", "c"])
)


def says(utility: float, correctness: float, rationale: str = "") -> Verdict:
    return Verdict(utility=utility, correctness=correctness, rationale=rationale)


@pytest.mark.parametrize(
    ("given", "rule", "expected"),
    [
        ([(1, 0)], "majority", (1, 0)),
        ([(1, 0), (1, 1), (0, 1)], "majority", (1, 1)),
        ([(1, 0), (1, 1), (0, 1)], "mean", (2 / 3, 2 / 3)),
        ([(1, 0), (0, 0)], "majority", (0.5, 0)),  # as many say one as the other
        ([(1, 1), (1, 0), (0, 0), (0, 0)], "majority", (0.5, 0)),
        ([(1, 1), (1, 0), (0, 0), (0, 0)], "mean", (0.5, 0.25)),
        ([(0.5, 1), (1, 1)], "majority", (1, 1)),  # a judge may be undecided
        ([(0.5, 0.5), (0.5, 0)], "majority", (0.5, 0)),
    ],
)
def test_signals_are_joined_one_by_one(
    given: list[tuple[float, float]], rule: Rule, expected: tuple[float, float]
) -> None:
    joined = combine([says(*signals) for signals in given], rule)
    assert joined is not None
    assert (joined.utility, joined.correctness) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["majority", "mean"])
@pytest.mark.parametrize(
    ("present", "missing", "enough"),
    [(0, 0, False), (0, 1, False), (1, 0, True), (1, 1, False), (2, 1, True), (1, 2, False),
     (2, 2, False), (3, 2, True)],
)  # fmt: skip
def test_half_or_more_without_a_verdict_are_none(
    rule: Rule, present: int, missing: int, enough: bool
) -> None:
    verdicts = [says(1, 0)] * present + [None] * missing
    for order in set(permutations(verdicts)):
        joined = combine(order, rule)
        assert joined == (says(1, 0) if enough else None)


@PROPERTY
@given(st.lists(st.none() | VERDICT, max_size=7), st.sampled_from(["majority", "mean"]))
def test_the_outcome_lies_between_the_verdicts_and_is_never_made_up(
    verdicts: list[Verdict | None], rule: Rule
) -> None:
    joined = combine(verdicts, rule)
    present = [v for v in verdicts if v is not None]
    assert (joined is None) == (len(present) <= len(verdicts) - len(present))
    if joined is None:
        return
    for name in ("utility", "correctness"):
        average = mean(getattr(v, name) for v in present)
        found = getattr(joined, name)
        if rule == "mean" or average == 0.5:
            assert found == pytest.approx(average)
        else:
            assert found == round(average)
    nearest = min(
        abs(v.utility - joined.utility) + abs(v.correctness - joined.correctness) for v in present
    )
    assert any(
        v.rationale == joined.rationale
        and abs(v.utility - joined.utility) + abs(v.correctness - joined.correctness) == nearest
        for v in present
    )


def test_the_rationale_is_that_of_the_first_who_agrees() -> None:
    verdicts = [says(0, 0, "no"), None, says(1, 1, "yes"), says(1, 1, "yes, too")]
    joined = combine(verdicts, "majority")
    assert joined == says(1, 1, "yes")
