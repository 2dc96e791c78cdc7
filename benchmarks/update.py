"""``make bench-update``: one optimizer step of ours against a padded one, on the same batch.

The batch is a real one: groups that the default policy plays on training questions of the default
task (real passages, real lengths), credited by CW-GRPO. Both sides train the same model on the same
samples, in float32, on the same number of threads, with DeepSpeed and AdamW, and their losses must
agree. They differ in what they compute:

- ours: every distinct prefix of a micro-batch once, logits where a token is trained
  (``pipeline.batch``, ``actors.learner_rank``);
- padded: one row a trajectory, right-padded to the longest of its micro-batch of 8 (the group), the
  usual attention mask, and logits of everything after the prompt, as TRL's GRPO trainer does it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import compare_in_turn, write_benchmark
from pipeline.batch import make_rank_batches
from pipeline.commands import prepare
from pipeline.commands.train import question_stream
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.credit import Objective, build_algorithm
from pipeline.driver import judge_group
from pipeline.evaluation import evaluate
from pipeline.launch import open_stack
from pipeline.measure import training_sampling
from pipeline.overrides import compose_config
from pipeline.tasks.files import read_questions
from pipeline.types import Group, Sample

PAIRS = 6
GROUPS = 16
ROWS = 8  # trajectories of a padded micro-batch


def main(overrides: Sequence[str]) -> None:
    """Play, then time. Prints the ratio last."""
    config = to_config(compose_config(list(overrides)))
    prepare.run(config)
    groups = asyncio.run(play(config))
    credit = build_algorithm(config.algorithm).credit(groups)
    samples, normaliser = list(credit.samples), credit.normaliser
    prompts = prompt_lengths(groups)
    ours, padded = (
        OurStep(config, samples, normaliser),
        PaddedStep(config, samples, normaliser, prompts),
    )
    first, second = ours.run(), padded.run()
    if abs(first - second) > 1e-4 * max(abs(first), 1e-3):
        raise SystemExit(f"the two do not compute the same loss: {first} and {second}")
    timed = compare_in_turn(ours.run, padded.run, pairs=PAIRS)
    shape = {
        "trajectories": len(samples),
        "tokens": int(sum(len(s.token_ids) for s in samples)),
        "trained_tokens": int(sum(s.loss_mask.sum() for s in samples)),
        "tokens_computed": ours.tokens_computed,
        "tokens_computed_padded": padded.tokens_computed,
        "longest": max(len(s.token_ids) for s in samples),
    }
    path = write_benchmark("update", {"batch": shape, "loss": [first, second], **timed})
    print(f"batch: {shape}")
    print(f"samples per second: {len(samples) / timed['ours_s']:.1f} ours, "
          f"{len(samples) / timed['theirs_s']:.1f} padded  ({path})")  # fmt: skip
    ratio = timed["ratio"]
    print(f"ours over padded: {ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})")


async def play(config: GleanerConfig) -> list[Group]:
    """The first groups of the training questions whose rewards differ."""
    questions = list(
        islice(question_stream(read_questions(Path(config.task.train)), 0), 4 * GROUPS)
    )
    async with open_stack(config, learner=False, on_event=print) as stack:
        played = await evaluate(
            stack.rollout,
            questions,
            name="bench",
            sampling=training_sampling(config.rollout),
            samples=config.buffer.group_size,
            concurrency=config.evaluate.concurrency,
        )
        groups = [
            Group(
                group_id=i,
                question=trajectories[0].question,
                trajectories=tuple(replace(t, group_id=i) for t in trajectories),
                admission_version=0,
            )
            for i, trajectories in enumerate(played.trajectories)
            if trajectories
        ]
        mixed = [g for g in groups if g.has_signal][:GROUPS]
        algorithm = build_algorithm(config.algorithm)
        return [await judge_group(stack.judge, algorithm, g) for g in mixed]


def prompt_lengths(groups: Sequence[Group]) -> dict[int, int]:
    """Tokens before the first sampled one, by group: logits start there in the padded step."""
    return {g.group_id: len(g.trajectories[0].rounds[0].context_ids) for g in groups}


class OurStep:
    """The learner's own rank, as a run has it."""

    def __init__(self, config: GleanerConfig, samples: list[Sample], normaliser: float) -> None:
        from actors.learner_rank import LearnerJob, LearnerRank

        self._rank = LearnerRank(
            LearnerJob(
                replace(config.learner, lr=0.0),  # both keep the same weights: losses stay equal
                Objective(),
                model_path=config.policy.path,
                temperature=1.0,
                total_steps=1,
            )
        )
        self._rank.start()
        budget = config.learner.tokens_per_micro_batch
        (self._batch,) = make_rank_batches(samples, normaliser, 1, budget)
        self.tokens_computed = sum(m.num_nodes for m in self._batch.micro_batches)

    def run(self) -> float:
        """One step; the loss."""
        return self._rank.train_step(self._batch)["loss"]


class PaddedStep:
    """The same step as most trainers make it."""

    def __init__(
        self,
        config: GleanerConfig,
        samples: list[Sample],
        normaliser: float,
        prompts: dict[int, int],
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from actors.deepspeed_engine import DeepSpeedEngine

        torch.set_num_threads(config.learner.threads)
        model = AutoModelForCausalLM.from_pretrained(config.policy.path, dtype=torch.float32)
        self._engine = DeepSpeedEngine(model, replace(config.learner, lr=0.0), world_size=1)
        self._normaliser = normaliser
        ordered = sorted(samples, key=lambda s: s.group_id)
        self._batches = [
            padded_batch(ordered[i : i + ROWS], prompts) for i in range(0, len(ordered), ROWS)
        ]
        self.tokens_computed = sum(b["ids"].numel() for b in self._batches)

    def run(self) -> float:
        """One step; the loss."""
        import torch

        total = 0.0
        for i, b in enumerate(self._batches):
            last = i == len(self._batches) - 1
            self._engine.begin(last=last)
            keep = b["ids"].shape[1] - b["start"] + 1
            logits = self._engine.engine(
                input_ids=b["ids"], attention_mask=b["attention"], use_cache=False,
                logits_to_keep=keep,
            ).logits[:, :-1]  # fmt: skip
            chosen = logits.gather(-1, b["ids"][:, b["start"] :, None])[..., 0]
            logprobs = chosen - torch.logsumexp(logits, -1)
            ratio = torch.exp(logprobs - b["sampler"])
            surrogate = torch.minimum(
                ratio * b["advantages"], ratio.clamp(0.8, 1.2) * b["advantages"]
            )
            loss = -(b["weights"] * surrogate).sum() / self._normaliser
            total += float(loss.detach())
            self._engine.accumulate(loss, last=last)
        self._engine.step(0.0)
        return total


def padded_batch(samples: Sequence[Sample], prompts: dict[int, int]) -> dict[str, Any]:
    """Rows padded on the right; per-token values from the shortest prompt's end on."""
    import torch

    longest = max(len(s.token_ids) for s in samples)
    start = min(prompts[s.group_id] for s in samples)

    def rows(name: str, dtype: Any) -> torch.Tensor:
        made = np.zeros((len(samples), longest), dtype)
        for row, s in zip(made, samples, strict=True):
            row[: len(s.token_ids)] = getattr(s, name) if name else 1
        return torch.as_tensor(made)

    return {
        "ids": rows("token_ids", np.int64),
        "attention": rows("", np.int64),
        "start": start,
        "sampler": rows("sampler_logprobs", np.float32)[:, start:],
        "advantages": rows("advantages", np.float32)[:, start:],
        "weights": rows("loss_weights", np.float32)[:, start:],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
