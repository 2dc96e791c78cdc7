"""TRL's AsyncGRPOTrainer on the default task, as a process that ``make bench-peers`` compares with.

    python -m benchmarks.peer_trl_async out=FILE [steps=4] [threads=1] [rows=64] [staleness=2]
        [key=value ...]

Same policy, questions, protocol, index and rewards as ours, as many trajectories a step, LoRA
(``learner.lora_rank``) on both sides. vLLM's server generates, TRL's trainer drops what is older
than ``staleness`` weight updates. What it took on a CPU:

- the server gets LoRA files at run time (TRL's other way is NCCL), does without chunked prefill
  (per-request seeds), and reads where a turn ends from the policy's ``generation_config.json``;
- ``get_peak_flops_per_device`` asks for a GPU: it answers None;
- FlashAttention 3, by which the trainer attends, is ``benchmarks/varlen_attention.py`` instead;
- ``_generate_one`` plays our protocol (``benchmarks/peer_trl_loop.py``), with tokens as sampled.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.vllm_io import engine_environment
from benchmarks.peer_task import SearchTask, policy_with_stops, step_notes
from benchmarks.varlen_attention import flash_attn_varlen_func
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.overrides import compose_config

SERVER_LIMIT_S = 300.0
ADAPTER = "trl-policy"  # what the trainer calls it
LOGGED = {
    "without_signal": "without_signal",
    "reward": "reward",
    "sample/dropped_stale_total": "dropped",
    "sample/staleness_mean": "staleness",
    "perf/rollout_wait_s": "learner_wait_s",
    "perf/weight_sync_s": "sync_s",
}


@contextlib.contextmanager
def serve(config: GleanerConfig, policy: Path, directory: Path, loras: int) -> Iterator[str]:
    """vLLM's server on loopback; its address."""
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", config.policy.dtype),
        *("--max-model-len", str(config.policy.max_model_len), "--enforce-eager"),
        *("--max-num-seqs", str(config.rollout.max_num_seqs), "--no-enable-chunked-prefill"),
        *("--enable-lora", "--max-loras", str(loras)),
        *("--max-lora-rank", str(config.learner.lora_rank), "--disable-uvicorn-access-log"),
    ]
    environment = {**os.environ, **engine_environment(config.rollout)}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]  # a server is always two processes
    environment |= {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.rollout.kv_cache_gib))),
    }
    said = directory / "server.log"
    with said.open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SERVER_LIMIT_S
    try:
        while True:
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                if requests.get(f"{address}/health", timeout=5).ok:
                    break
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"vLLM's server did not start:\n{said.read_text()[-3000:]}")
            time.sleep(1.0)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def make_it_run_on_a_cpu() -> None:
    """The two changes to the trainer's module (see above)."""
    from trl.experimental.async_grpo import async_grpo_trainer, packing

    kernel = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    async_grpo_trainer.get_peak_flops_per_device = lambda *_: None
    packing._flash_attn = lambda: kernel  # type: ignore[assignment]


def train(
    config: GleanerConfig, settings: Sequence[str], steps: int, rows: int, staleness: int
) -> list[dict[str, float]]:
    """When each step ended, what it took, and what TRL says of it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

    from benchmarks.peer_trl_loop import SearchWorker

    make_it_run_on_a_cpu()
    directory = Path(config.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(config.policy.path)
    tokenizer.response_template = {}  # there are no tool calls to parse
    task = SearchTask(config, tokenizer)
    policy = policy_with_stops(config, directory, task.stop_token_ids)
    trajectories = config.buffer.groups_per_step * config.buffer.group_size
    ended: list[dict[str, float]] = []
    with serve(config, policy, directory, loras=staleness + 2) as address:
        arguments = AsyncGRPOConfig(
            output_dir=str(directory / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=trajectories // rows,
            token_budget=0,  # so many rows, not so many tokens
            num_generations=config.buffer.group_size,
            max_completion_length=config.rollout.max_round_tokens,
            max_steps=steps,
            learning_rate=config.learner.lr,
            adam_beta1=config.learner.betas[0],
            adam_beta2=config.learner.betas[1],
            temperature=config.rollout.temperature,
            max_staleness=staleness,
            vllm_server_base_url=address,
            seed=config.trainer.seed,
            save_strategy="no",
            report_to="none",
        )
        dataset = Dataset.from_list([{"prompt": q.text} for q in task.questions])
        worker = SearchWorker(
            settings=settings,
            model_name=str(policy),
            lora_name=ADAPTER,
            dataset=dataset,
            reward_funcs=[],
            processing_class=tokenizer,
            eos_token_ids=task.stop_token_ids,
            num_generations=arguments.num_generations,
            max_inflight_tasks=max(staleness, 1) * trajectories,  # the trainer's own rule
            queue_maxsize=arguments.queue_maxsize,
            vllm_server_url=address,
            max_tokens=arguments.max_completion_length,
            temperature=arguments.temperature,
            request_timeout=arguments.request_timeout,
        )
        trainer = AsyncGRPOTrainer(
            model=str(policy),
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=_adapter(LoraConfig, config),
            rollout_worker=worker,  # type: ignore[arg-type]
            callbacks=[step_notes(ended, LOGGED)],
        )
        trainer.train()
    return ended


def _adapter(lora_config: Any, config: GleanerConfig) -> Any:
    rank = config.learner.lora_rank
    return lora_config(
        r=rank,
        lora_alpha=config.learner.lora_alpha or 2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def main(arguments: Sequence[str]) -> None:
    """Train, and write what each step took."""
    options = dict(a.split("=", 1) for a in arguments)
    out, threads = Path(options.pop("out")), int(options.pop("threads", "1"))
    steps, rows = int(options.pop("steps", "4")), int(options.pop("rows", "64"))
    staleness = int(options.pop("staleness", "2"))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the rollout process, too
    import torch

    torch.set_num_threads(threads)
    settings = [f"{key}={value}" for key, value in options.items()]
    config = to_config(compose_config(settings))
    if config.learner.lora_rank == 0:
        raise SystemExit("this trainer sends LoRA adapters to vLLM: give learner.lora_rank")
    out.write_text(json.dumps(train(config, settings, steps, rows, staleness)))


if __name__ == "__main__":
    main(sys.argv[1:])
