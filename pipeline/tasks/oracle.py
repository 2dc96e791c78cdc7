"""The oracle check: does the right sub-question find the evidence, and a sloppy query not?

Four ways to query are compared on every question of a split, all with top-k passages:

    oracle            each hop's own sub-question (``metadata.plan[i].query``)
    whole question    the question as it stands, once
    first entity      the name the question starts from, once
    hop entity        each hop's subject name alone
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.types import Question

__all__ = ["MIN_ORACLE_RECALL", "Search", "check_oracle"]

MIN_ORACLE_RECALL = 0.95  # of questions whose every evidence passage the sub-questions find

Search = Callable[[Sequence[str], int], list[list[str]]]  # queries, k -> passage ids, best first


def check_oracle(questions: Sequence[Question], search: Search, top_k: int = 3) -> dict[str, Any]:
    """Shares in [0, 1] for all questions, for each number of hops and for each relation.

    ``oracle_all`` (of questions): every hop's evidence is in the top-k of its sub-question.
    ``whole_question_all``, ``whole_question_any``, ``first_entity_all`` (of questions): all or
    any of the evidence in the top-k of that one query. ``recall_at_1``, ``recall_at_k``,
    ``entity_recall_at_k`` (of hops): a hop's evidence for its sub-question, or its subject name.
    Every question must carry a plan.
    """
    found = _Results(questions, search, top_k)
    by_hops: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_hops[str(question.hops)].append(question)
    return {
        "top_k": top_k,
        "all": found.summary(questions),
        "hops": {hops: found.summary(by_hops[hops]) for hops in sorted(by_hops)},
        "relations": found.relations(),
    }


class _Results:
    """One search for all distinct queries, and the shares over them."""

    def __init__(self, questions: Sequence[Question], search: Search, top_k: int) -> None:
        self.questions = questions
        queries = [query for question in questions for query in _queries(question)]
        distinct = list(dict.fromkeys(queries))
        self.ids: Mapping[str, list[str]] = dict(
            zip(distinct, search(distinct, top_k), strict=True)
        )

    def summary(self, questions: Sequence[Question]) -> dict[str, float | int]:
        hops = [hop for question in questions for hop in question.metadata["plan"]]
        return {
            "questions": len(questions),
            "oracle_all": _share(all(map(self.finds, _plan(q))) for q in questions),
            "whole_question_all": _share(
                set(q.evidence or ()) <= set(self.ids[q.text]) for q in questions
            ),
            "whole_question_any": _share(
                bool(set(q.evidence or ()) & set(self.ids[q.text])) for q in questions
            ),
            "first_entity_all": _share(
                set(q.evidence or ()) <= set(self.ids[_plan(q)[0]["subject"]]) for q in questions
            ),
            **self.hop_summary(hops),
        }

    def hop_summary(self, hops: Sequence[Mapping[str, str]]) -> dict[str, float]:
        return {
            "recall_at_1": _share(hop["evidence"] == self.ids[hop["query"]][0] for hop in hops),
            "recall_at_k": _share(map(self.finds, hops)),
            "entity_recall_at_k": _share(
                hop["evidence"] in self.ids[hop["subject"]] for hop in hops
            ),
        }

    def relations(self) -> dict[str, dict[str, float]]:
        by_relation: dict[str, list[Mapping[str, str]]] = defaultdict(list)
        for question in self.questions:
            for hop in _plan(question):
                by_relation[hop["relation"]].append(hop)
        return {name: self.hop_summary(by_relation[name]) for name in sorted(by_relation)}

    def finds(self, hop: Mapping[str, str]) -> bool:
        return hop["evidence"] in self.ids[hop["query"]]


def _plan(question: Question) -> Sequence[Mapping[str, str]]:
    plan: Sequence[Mapping[str, str]] = question.metadata["plan"]
    return plan


def _queries(question: Question) -> list[str]:
    plan = _plan(question)
    return [question.text, *(hop["query"] for hop in plan), *(hop["subject"] for hop in plan)]


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return round(sum(values) / len(values), 4) if values else 0.0
