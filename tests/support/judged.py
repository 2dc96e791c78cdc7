"""Judged rounds with labels and verdicts as a test gives them, and a question set with supporting
facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.judging.judged import JudgedRound, judged_rounds
from pipeline.judging.traces import LabelledTrace, make_trajectory
from pipeline.types import Passage, Question, Verdict

Pair = tuple[float, float] | None  # utility and correctness


def verdict(pair: Pair, rationale: str = "") -> Verdict | None:
    """A verdict of two numbers."""
    if pair is None:
        return None
    return Verdict(utility=pair[0], correctness=pair[1], rationale=rationale)


def trace(
    question: str,
    labels: Sequence[Pair],
    *,
    number: int = 0,
    lengths: Sequence[int] = (),
    kinds: Sequence[str] = (),
    text: str = "",
) -> LabelledTrace:
    """A trace of as many rounds as labels; ``lengths`` are those of the rounds' reasoning, ``text``
    stands in everything that can be read."""
    rows = [
        (
            "r" * (lengths[i] if lengths else 5) + text,
            f"query {i + 1} {text}",
            [Passage(doc_id=f"{i}", title=f"title {i + 1} {text}", text=f"passage {i + 1} {text}")],
        )
        for i in range(len(labels))
    ]
    asked = Question(
        id=question,
        text=f"What about {question}? {text}",
        answers=(f"golden {text}",),
        metadata={"kinds": list(kinds)} if kinds else {},
    )
    return LabelledTrace(
        id=f"{question}/{number}",
        trajectory=make_trajectory(asked, rows, "an answer", number=number),
        labels=tuple(verdict(pair, f"label's reason {text}") for pair in labels),
    )


def rounds_of(*played: tuple[str, Sequence[Pair], Sequence[Sequence[Pair]]]) -> list[JudgedRound]:
    """``(question, labels, repeats)`` a trace, each repeat one pair a round."""
    traces = [trace(q, labels, number=n) for n, (q, labels, _) in enumerate(played)]
    verdicts = [[tuple(map(verdict, repeat)) for repeat in repeats] for _, _, repeats in played]
    return judged_rounds(traces, verdicts)


def hotpot_entry(**changes: Any) -> dict[str, Any]:
    """A made-up question of HotpotQA's format: the second paragraph is named by the first alone."""
    entry = {
        "_id": "h1",
        "question": "Which river flows past the birthplace of Orla Venn?",
        "answer": "Tamsel",
        "supporting_facts": [["Orla Venn", 0], ["Brakwell (town)", 1]],
        "context": [
            ["Orla Venn", ["Orla Venn is a painter.", " She was born in Brakwell."]],
            ["Brakwell (town)", ["Brakwell is a town.", " It lies on the Tamsel."]],
            ["Peter Venn", ["Peter Venn was a sailor."]],
            ["Lower Mirren", ["Lower Mirren is a lake."]],
            ["Gorse Hill", ["Gorse Hill is a park."]],
        ],
    }
    return {**entry, **changes}


def other_entry() -> dict[str, Any]:
    """Another one, a comparison: its question names both paragraphs."""
    return {
        "_id": "h2",
        "question": "Are Dunholt and Westrel both castles?",
        "answer": "yes",
        "supporting_facts": [["Dunholt", 0], ["Westrel", 0]],
        "context": [
            ["Sable Quay", ["Sable Quay is a harbour."]],
            ["Dunholt", ["Dunholt is a castle."]],
            ["Westrel", ["Westrel is a castle."]],
            ["Ulric Faye", ["Ulric Faye was a poet."]],
        ],
    }


def write_entries(path: Path, *entries: Any) -> Path:
    """A file of them."""
    path.write_text(json.dumps(list(entries)), encoding="utf-8")
    return path
