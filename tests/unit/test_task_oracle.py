"""The oracle check counts what each way of querying finds."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.tasks.oracle import check_oracle
from pipeline.types import Question

FOUND = {
    "Capital of A?": ["1", "8", "9"],  # first
    "Population of B?": ["9", "2", "8"],  # second
    "Capital of C?": ["7", "8", "9"],  # not at all
    "Population of the capital of A?": ["1", "7", "8"],  # one of two
    "What is the capital of C?": ["3", "7", "8"],
    "A": ["7", "8", "9"],
    "B": ["2", "8", "9"],
    "C": ["3", "8", "9"],
}


def _search(queries: Sequence[str], top_k: int) -> list[list[str]]:
    assert len(set(queries)) == len(queries)
    return [FOUND[query][:top_k] for query in queries]


def _hop(relation: str, subject: str, evidence: str, query: str) -> dict[str, str]:
    return {
        "relation": relation,
        "subject": subject,
        "answer": "-",
        "evidence": evidence,
        "query": query,
    }


def _question(text: str, *plan: dict[str, str]) -> Question:
    return Question(
        id=text,
        text=text,
        answers=("-",),
        evidence=tuple(hop["evidence"] for hop in plan),
        metadata={"hops": len(plan), "plan": list(plan)},
    )


TWO_HOPS = _question(
    "Population of the capital of A?",
    _hop("capital", "A", "1", "Capital of A?"),
    _hop("population", "B", "2", "Population of B?"),
)
ONE_HOP = _question("What is the capital of C?", _hop("capital", "C", "3", "Capital of C?"))


def test_all_hops_must_be_found_and_each_way_is_counted() -> None:
    result = check_oracle([TWO_HOPS, ONE_HOP], _search)
    assert result["hops"]["2"] == {
        "questions": 1,
        "oracle_all": 1.0,
        "whole_question_all": 0.0,
        "whole_question_any": 1.0,
        "first_entity_all": 0.0,
        "recall_at_1": 0.5,
        "recall_at_k": 1.0,
        "entity_recall_at_k": 0.5,
    }
    assert result["hops"]["1"]["oracle_all"] == 0.0
    assert result["hops"]["1"]["whole_question_all"] == 1.0
    assert result["all"]["oracle_all"] == 0.5
    assert result["all"]["recall_at_k"] == 0.6667


def test_a_smaller_k_finds_less() -> None:
    assert check_oracle([TWO_HOPS], _search, top_k=1)["all"]["oracle_all"] == 0.0


def test_recall_is_reported_for_each_relation() -> None:
    relations = check_oracle([TWO_HOPS, ONE_HOP], _search)["relations"]
    assert relations["capital"]["recall_at_k"] == 0.5
    assert relations["population"]["recall_at_1"] == 0.0
