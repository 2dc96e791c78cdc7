"""What the small judge learns from: labelled traces as token ids, with a rationale to think in.

The rationale says in words what the label follows from. A small model that writes it first decides
each part where it can look at the part alone: it goes through the rounds one by one, says what was
sought in each and what its passages answer, and comes to the round in question last:

    Plan: country, capital. Round 1: country of Nakuru is unknown. Round 2: country of Nakuru is
    Kenya. Needed.

Both signals follow: 1 where that round found something, and 1 where it was ``Needed``. What was
found is said with its answer, which only the passages tell: a judge that need not quote them soon
believes the query (in 6 of 7 of its mistakes in utility, when it was tried).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.episode.evidence import findings
from pipeline.judging.prompt import JudgePrompt, Message
from pipeline.judging.verdict_form import write_verdicts
from pipeline.types import Trajectory, Verdict
from pipeline.warmstart.encode import EncodedEpisode
from pipeline.warmstart.plans import label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_lesson", "lesson_verdicts", "lessons_of"]

_OBJECTIONS = {
    "known": "Known already.",
    "empty": "Empty.",
    "repeats": "Repeats.",
    None: "Needed.",
}


def lesson_verdicts(trajectory: Trajectory) -> list[Verdict]:
    """The evidence judge's verdicts with a rationale in the words of the question's plan.

    Raises ValueError for a question whose plan nobody knows.
    """
    facts = _facts(trajectory)
    told = f"Plan: {', '.join(_relations(trajectory))}."
    missing = list(facts)
    verdicts = []
    for number, finding in enumerate(findings(trajectory), start=1):
        told = f"{told} Round {number}: {_told(facts, missing, finding.found)}."
        missing = [i for i in missing if i not in finding.found]
        objection = (
            f"Unsupported: {', '.join(finding.unseen)}."
            if finding.objection == "unseen"
            else _OBJECTIONS[finding.objection]
        )
        verdicts.append(
            Verdict(
                utility=finding.verdict.utility,
                correctness=finding.verdict.correctness,
                rationale=f"{told} {objection}",
            )
        )
    return verdicts


def lessons_of(
    trajectory: Trajectory, prompt: JudgePrompt, secret: bytes, *, together: bool
) -> Iterator[tuple[list[Message], str]]:
    """What the judge is asked, and what it should answer: once a round, or once for all. Nothing
    where a rationale would be longer than the prompt allows."""
    verdicts = lesson_verdicts(trajectory)
    too_long = any(len(v.rationale) > prompt.rationale_chars for v in verdicts)
    if not verdicts or too_long:
        return
    if together:
        yield prompt.ask_all(trajectory, secret), write_verdicts(verdicts, together=True)
        return
    for number, verdict in enumerate(verdicts, start=1):
        messages = prompt.ask_round(trajectory, number, secret)
        yield messages, write_verdicts([verdict], together=False)


def encode_lesson(
    messages: Sequence[Message], answer: str, tokenizer: PreTrainedTokenizerBase
) -> EncodedEpisode:
    """Chat and answer as ids: the answer and the end of text are learnt, the chat is read."""
    asked: list[int] = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    answered = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return EncodedEpisode(
        asked + answered,
        [False] * len(asked) + [True] * len(answered),
        [True] * len(asked) + [False] * len(answered),
    )


def _facts(trajectory: Trajectory) -> dict[str, tuple[str, str]]:
    """What each evidence passage is asked for, and what it answers, in the plan's order."""
    return {
        str(hop["evidence"]): (
            f"{label(str(hop['relation']))} of {hop['subject']}",
            str(hop["answer"]),
        )
        for hop in _hops(trajectory)
    }


def _relations(trajectory: Trajectory) -> list[str]:
    return [label(str(hop["relation"])) for hop in _hops(trajectory)]


def _hops(trajectory: Trajectory) -> Sequence[Mapping[str, Any]]:
    plan: Sequence[Mapping[str, Any]] = trajectory.question.metadata.get("plan") or ()
    if not plan:
        raise ValueError(f"question {trajectory.question.id!r} has no metadata.plan")
    return plan


def _told(
    facts: Mapping[str, tuple[str, str]], missing: Sequence[str], found: Sequence[str]
) -> str:
    """What a round sought, the first that was missing, and what it found, that or another."""
    if not missing:
        return "nothing missing"
    sought = missing[0]
    told = [] if sought in found else [f"{facts[sought][0]} is unknown"]
    return ", ".join([*told, *(" is ".join(facts[i]) for i in found)])
