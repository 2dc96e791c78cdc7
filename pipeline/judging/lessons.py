"""What the small judge learns from: labelled traces as token ids, with a rationale to think in.

The rationale says in words what the label follows from. A small model that writes it first decides
each part where it can look at the part alone:

    Plan: country, capital. Before: country of Nakuru. Found: capital of Kenya. Needed.

Both signals follow: 1 where something new was found, and 1 where the round was ``Needed``.
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
    plan = _plan(trajectory)
    before: list[str] = []
    verdicts = []
    for finding in findings(trajectory):
        found = [plan.get(i, "another fact") for i in finding.found]
        objection = (
            f"Unsupported: {', '.join(finding.unseen)}."
            if finding.objection == "unseen"
            else _OBJECTIONS[finding.objection]
        )
        rationale = (
            f"Plan: {', '.join(_relations(trajectory))}. Before: {_listed(before)}. "
            f"Found: {_listed(found)}. {objection}"
        )
        verdicts.append(
            Verdict(
                utility=float(bool(found)),
                correctness=float(finding.objection is None),
                rationale=rationale,
            )
        )
        before += found
    return verdicts


def lessons_of(
    trajectory: Trajectory, prompt: JudgePrompt, secret: bytes, *, together: bool
) -> Iterator[tuple[list[Message], str]]:
    """What the judge is asked, and what it should answer: once a round, or once for all."""
    verdicts = lesson_verdicts(trajectory)
    if not verdicts:
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


def _plan(trajectory: Trajectory) -> dict[str, str]:
    """The words for each evidence passage, in the plan's order."""
    return {
        str(hop["evidence"]): f"{label(str(hop['relation']))} of {hop['subject']}"
        for hop in _hops(trajectory)
    }


def _relations(trajectory: Trajectory) -> list[str]:
    return [label(str(hop["relation"])) for hop in _hops(trajectory)]


def _hops(trajectory: Trajectory) -> Sequence[Mapping[str, Any]]:
    plan: Sequence[Mapping[str, Any]] = trajectory.question.metadata.get("plan") or ()
    if not plan:
        raise ValueError(f"question {trajectory.question.id!r} has no metadata.plan")
    return plan


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"
