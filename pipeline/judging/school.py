"""Trains the small judge: a policy's model goes on to learn verdicts.

It has the policy's architecture and starts from its weights, which can read passages and follow
plans. The pieces of JSON around every trace and verdict become tokens of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.judging.lessons import encode_lesson, lessons_of
from pipeline.judging.perturb import Bystanders, perturbed
from pipeline.judging.prompt import new_secret, read_prompt
from pipeline.judging.traces import make_trajectory, read_traces
from pipeline.judging.training_config import JudgeTrainingConfig
from pipeline.types import Trajectory
from pipeline.warmstart.batches import bucketed
from pipeline.warmstart.encode import EncodedEpisode
from pipeline.warmstart.school import save_policy
from pipeline.warmstart.substitute import NameMaker, substitution
from pipeline.warmstart.train import train_phase
from pipeline.warmstart.workers import Log, run_workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["JSON_PIECES", "LessonBook", "train_judge"]

# Each holds a quotation mark that a text inside a JSON string cannot hold unescaped, or words of
# the judge's own rationale.
JSON_PIECES = (
    '{"question": "',
    '{"round": ',
    ', "reasoning": "',
    '", "query": "',
    '", "passages": [{"title": "',
    '", "text": "',
    '"}, {"title": "',
    '{"rationale":"Plan: ',
    '","utility":',
    ',"correctness":',
    '{"rounds":[',
    ". Round ",
    " is unknown",
    ": nothing missing",
    " Needed.",
    " Empty.",
    " Repeats.",
    " Known already.",
    " Unsupported: ",
)


def train_judge(traces: Sequence[Path], destination: Path, settings: JudgeTrainingConfig) -> None:
    """Train on the traces and write a Hugging Face directory. Raises GleanerError where a worker
    fails."""
    run_workers(partial(_work, list(traces), destination, settings), settings)


def _work(
    traces: list[Path], destination: Path, settings: JudgeTrainingConfig, rank: int, log: Log
) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(settings.start)
    model = Qwen3ForCausalLM.from_pretrained(settings.start, dtype=torch.float32)
    add_tokens(model, tokenizer, JSON_PIECES)
    book = LessonBook(
        [t.trajectory for path in traces for t in read_traces(path)], tokenizer, settings
    )
    rng = random.Random(f"{settings.seed}/{rank}")
    batches = bucketed(
        book.lessons(rng),
        tokens_per_batch=settings.tokens_per_step // settings.workers,
        max_length=settings.max_length,
        pad_id=tokenizer.pad_token_id,
        rng=rng,
    )
    train_phase(model, batches, settings.schedule, settings, name="judge", log=log)
    if rank == 0:
        save_policy(model.half(), tokenizer, destination)  # engines compute in float32 from them
        log(f"judge: saved to {destination}")


def add_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> None:
    """Make each piece one token, whose embedding starts as the mean of what it was made of."""
    import torch
    from tokenizers import AddedToken

    parts = [tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(p, special=False, normalized=False) for p in pieces])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for row, part in zip(range(before, len(tokenizer)), parts, strict=True):
            table[row] = table[torch.tensor(part)].mean(dim=0)


@dataclass(frozen=True, slots=True)
class LessonBook:
    """An endless stream of lessons from trajectories with known plans."""

    trajectories: list[Trajectory]
    tokenizer: PreTrainedTokenizerBase
    settings: JudgeTrainingConfig

    def lessons(self, rng: random.Random) -> Iterator[EncodedEpisode]:
        """One lesson a trajectory: a round of it, the later ones more often, or all of them
        together."""
        prompt = read_prompt(self.settings.prompt)
        names = NameMaker.from_passages(
            p for t in self.trajectories[:4000] for r in t.search_rounds for p in r.passages
        )
        others = Bystanders(self.trajectories)
        while True:
            trajectory = rng.choice(self.trajectories)
            if rng.random() < self.settings.perturbed:
                trajectory = perturbed(trajectory, others, rng)
            if rng.random() < self.settings.substitute:
                trajectory = retold(trajectory, names, rng)
            together = rng.random() < self.settings.together
            lessons = list(lessons_of(trajectory, prompt, new_secret(), together=together))
            if lessons:
                (lesson,) = rng.choices(lessons, weights=range(1, len(lessons) + 1))
                yield encode_lesson(*lesson, self.tokenizer)


def retold(trajectory: Trajectory, make_name: NameMaker, rng: random.Random) -> Trajectory:
    """The trajectory with subjects and answers of its plan under other names."""
    question = trajectory.question
    plan = question.metadata["plan"]
    retell = substitution(
        [str(hop[key]) for hop in plan for key in ("subject", "answer")], make_name, rng
    )
    rows = [
        (
            retell(r.reasoning),
            retell(r.query or ""),
            tuple(replace(p, title=retell(p.title), text=retell(p.text)) for p in r.passages),
        )
        for r in trajectory.search_rounds
    ]
    told = [
        {**hop, "subject": retell(str(hop["subject"])), "answer": retell(str(hop["answer"]))}
        for hop in plan
    ]
    return make_trajectory(
        replace(question, text=retell(question.text), metadata={**question.metadata, "plan": told}),
        rows,
        trajectory.answer,
        number=trajectory.sample_id,
    )
