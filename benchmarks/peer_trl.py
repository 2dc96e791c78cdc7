"""TRL's GRPOTrainer on the default task, as the process that ``make bench-peers`` compares with.

    python -m benchmarks.peer_trl out=FILE [steps=4] [threads=2] [rows=16] [key=value ...]

Same policy, questions, protocol, index and rewards as ours, and as many trajectories a step. TRL
generates (its own single-turn path, transformers) and trains; the rounds of an episode are a
``rollout_func``, TRL's own hook for that: all unfinished episodes are generated for at once, then
all their searches are one batch. Nothing of TRL is changed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.episode.protocol import SearchProtocol
from pipeline.episode.rewards import exact_match
from pipeline.overrides import compose_config
from pipeline.tasks.files import read_questions
from pipeline.types import Passage, Question

QUESTIONS = 2000


@dataclass
class Episode:
    """One trajectory as TRL wants it: what the policy wrote is 1 in ``mask``."""

    question: Question
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    answer: str | None = None
    rounds: int = 0
    going_on: bool = True

    def add(self, token_ids: Sequence[int], sampled: int) -> None:
        """Some tokens, sampled (1) or not (0)."""
        self.completion_ids += token_ids
        self.mask += [sampled] * len(token_ids)


class SearchRollouts:
    """A ``rollout_func``: plays all episodes of a step together, round by round."""

    def __init__(
        self, config: GleanerConfig, questions: Sequence[Question], tokenizer: Any
    ) -> None:
        from retrieval_index.index import DenseIndex

        self._config = config
        self._protocol = SearchProtocol(config.protocol, tokenizer)
        self._by_text = {question.text: question for question in questions}
        self._index = DenseIndex.open(
            Path(config.task.index),
            Path(config.task.corpus),
            config.retriever.encoder,
            threads=0,
            batch_size=config.retriever.batch_size,
        )

    @property
    def stop_token_ids(self) -> list[int]:
        """Where the policy's turn ends."""
        if self._protocol.stop_strings:
            raise SystemExit("this peer needs a tokenizer with one token for a closing tag")
        return self._protocol.stop_token_ids

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Prompts are the questions, each as often as it has samples."""
        episodes = [
            Episode(self._by_text[text], self._protocol.prompt_ids(text)) for text in prompts
        ]
        while going_on := [e for e in episodes if e.going_on]:
            self._play_round(going_on, trainer)
        return {
            "prompt_ids": [e.prompt_ids for e in episodes],
            "completion_ids": [e.completion_ids for e in episodes],
            "logprobs": None,
            "env_mask": [e.mask for e in episodes],
            "outcome": [float(exact_match(e.answer, e.question.answers)) for e in episodes],
        }

    def _play_round(self, episodes: Sequence[Episode], trainer: Any) -> None:
        contexts = [e.prompt_ids + e.completion_ids for e in episodes]
        generated, _ = trainer._generate_single_turn(contexts, None, {}, 1)
        asking, queries = [], []
        for episode, token_ids in zip(episodes, generated, strict=True):
            episode.add(token_ids, 1)
            episode.rounds += 1
            action = self._protocol.parse(self._protocol.decode(token_ids))
            episode.answer = action.answer
            is_last = episode.rounds == self._config.protocol.max_rounds
            episode.going_on = bool(action.queries) and action.answer is None and not is_last
            if episode.going_on:
                asking.append(episode)
                queries.append(action.queries[0])
        for episode, hits in zip(
            asking, self._index.search(queries, self._config.protocol.top_k), strict=True
        ):
            observation = self._protocol.observation_ids(
                [Passage(doc_id=h.doc_id, title=h.title, text=h.text, score=h.score) for h in hits]
            )
            room = self._config.policy.max_model_len - len(episode.prompt_ids)
            if len(episode.completion_ids) + len(observation) >= room:
                episode.going_on = False  # truncated, as ours
            else:
                episode.add(observation, 0)


def outcome_reward(prompts: Any, completions: Any, outcome: list[float], **_: Any) -> list[float]:
    """What the rollout found: TRL hands it over."""
    return outcome


def train(config: GleanerConfig, steps: int, rows: int) -> list[dict[str, float]]:
    """When each step ended, what it took, and how many of its trajectories had a signal."""
    import psutil
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(config.policy.path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(config.policy.path, dtype="float32")
    questions = read_questions(Path(config.task.train))[:QUESTIONS]
    rollouts = SearchRollouts(config, questions, tokenizer)
    model.generation_config.eos_token_id = rollouts.stop_token_ids
    trajectories = config.buffer.groups_per_step * config.buffer.group_size
    ended: list[dict[str, float]] = []

    class Note(TrainerCallback):
        """A line a step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            cpu = psutil.Process().cpu_times()
            ended.append({"at": time.monotonic(), "cpu_s": cpu.user + cpu.system})
            print(f"trl: step {state.global_step}", flush=True)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if ended and logs and "frac_reward_zero_std" in logs:
                ended[-1]["without_signal"] = float(logs["frac_reward_zero_std"])
                ended[-1]["reward"] = float(logs["reward"])

    arguments = GRPOConfig(
        output_dir=str(Path(config.run_dir) / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=trajectories // rows,
        num_generations=config.buffer.group_size,
        max_completion_length=config.rollout.max_round_tokens,
        max_steps=steps,
        learning_rate=config.learner.lr,
        adam_beta1=config.learner.betas[0],
        adam_beta2=config.learner.betas[1],
        lr_scheduler_type="constant",
        beta=0.0,
        temperature=config.rollout.temperature,
        seed=config.trainer.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=outcome_reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": q.text} for q in questions]),
        processing_class=tokenizer,
        rollout_func=rollouts,
        callbacks=[Note()],
    )
    trainer.train()
    return ended


def main(arguments: Sequence[str]) -> None:
    """Train, and write what each step took."""
    options = dict(a.split("=", 1) for a in arguments)
    out, threads = Path(options.pop("out")), int(options.pop("threads", "2"))
    steps, rows = int(options.pop("steps", "4")), int(options.pop("rows", "16"))
    import torch

    torch.set_num_threads(threads)
    config = to_config(compose_config([f"{key}={value}" for key, value in options.items()]))
    out.write_text(json.dumps(train(config, steps, rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
