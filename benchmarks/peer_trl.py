"""TRL's GRPOTrainer on the default task, as a process that ``make bench-peers`` compares with.

    python -m benchmarks.peer_trl out=FILE [steps=4] [threads=2] [rows=16]
        [generate=transformers] [key=value ...]

Same policy, questions, protocol, index and rewards as ours, and as many trajectories a step. TRL
generates (its own single-turn path) and trains; the rounds of an episode are a ``rollout_func``,
TRL's own hook for that: all unfinished episodes are generated for at once, then all their searches
are one batch. ``generate=transformers``: nothing of TRL is changed. ``generate=vllm`` is its
"colocate" mode, an engine in the same process, which took this on a CPU:

- vLLM keeps its linear layers unpacked: TRL loads new weights into them by name;
- the engine computes in the policy's dtype, and eagerly; it reads where a turn ends from the
  policy's ``generation_config.json``;
- no importance sampling between engine and trainer, which would cost a forward pass more.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.vllm_io import engine_environment
from benchmarks.peer_task import Episode, SearchTask, policy_with_stops, step_notes
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.overrides import compose_config


class SearchRollouts:
    """A ``rollout_func``: plays all episodes of a step together, round by round."""

    def __init__(self, task: SearchTask) -> None:
        self._task = task

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Prompts are the questions, each as often as it has samples."""
        episodes = [self._task.episode(text) for text in prompts]
        while going_on := [e for e in episodes if e.going_on]:
            self._play_round(going_on, trainer)
        return {
            "prompt_ids": [e.prompt_ids for e in episodes],
            "completion_ids": [e.completion_ids for e in episodes],
            "logprobs": None,
            "env_mask": [e.mask for e in episodes],
            "outcome": [e.reward for e in episodes],
        }

    def _play_round(self, episodes: Sequence[Episode], trainer: Any) -> None:
        generated, _ = trainer._generate_single_turn([e.context for e in episodes], None, {}, 1)
        taken = [self._task.take(e, ids) for e, ids in zip(episodes, generated, strict=True)]
        asking = [(e, query) for e, query in zip(episodes, taken, strict=True) if query is not None]
        observations = self._task.search([query for _, query in asking])
        for (episode, _), observation in zip(asking, observations, strict=True):
            self._task.observe(episode, observation)


def outcome_reward(prompts: Any, completions: Any, outcome: list[float], **_: Any) -> list[float]:
    """What the rollout found: TRL hands it over."""
    return outcome


def make_colocate_run_on_a_cpu(config: GleanerConfig) -> None:
    """The changes to vLLM and to how TRL makes its engine (see above)."""
    import torch
    from trl.generation import vllm_generation
    from vllm.model_executor.layers import utils

    def keep_unpacked(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep_unpacked
    vllm_generation.LLM = functools.partial(
        vllm_generation.LLM, dtype=config.policy.dtype, enforce_eager=True
    )


def train(config: GleanerConfig, steps: int, rows: int, generate: str) -> list[dict[str, float]]:
    """When each step ended, what it took, and how many of its trajectories had a signal."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(config.policy.path, padding_side="left")
    task = SearchTask(config, tokenizer)
    directory = Path(config.run_dir)
    policy = policy_with_stops(config, directory, task.stop_token_ids)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype="float32")
    model.generation_config.eos_token_id = task.stop_token_ids
    trajectories = config.buffer.groups_per_step * config.buffer.group_size
    ended: list[dict[str, float]] = []
    if use_vllm := generate == "vllm":
        make_colocate_run_on_a_cpu(config)
    arguments = GRPOConfig(
        output_dir=str(directory / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=trajectories // rows,
        num_generations=config.buffer.group_size,
        use_vllm=use_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=config.policy.max_model_len,
        vllm_importance_sampling_correction=False,
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
        train_dataset=Dataset.from_list([{"prompt": q.text} for q in task.questions]),
        processing_class=tokenizer,
        rollout_func=SearchRollouts(task),
        callbacks=[
            step_notes(ended, {"frac_reward_zero_std": "without_signal", "reward": "reward"})
        ],
    )
    trainer.train()
    return ended


def main(arguments: Sequence[str]) -> None:
    """Train, and write what each step took."""
    options = dict(a.split("=", 1) for a in arguments)
    out, threads = Path(options.pop("out")), int(options.pop("threads", "2"))
    steps, rows = int(options.pop("steps", "4")), int(options.pop("rows", "16"))
    generate = options.pop("generate", "transformers")
    if generate not in ("transformers", "vllm"):
        raise SystemExit(f"generate={generate}: must be transformers or vllm")
    config = to_config(compose_config([f"{key}={value}" for key, value in options.items()]))
    if generate == "vllm":
        os.environ.update(engine_environment(config.rollout))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.rollout.kv_cache_gib)))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    out.write_text(json.dumps(train(config, steps, rows, generate)))


if __name__ == "__main__":
    main(sys.argv[1:])
