"""What goes into vLLM and what comes out of it, in our types. vLLM is imported when called."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.weight_receivers import BACKENDS
from pipeline.config import PolicyConfig, RolloutConfig
from pipeline.types import Generation, Sampling

__all__ = [
    "Completion",
    "Probe",
    "WeightReceipt",
    "completion_params",
    "engine_arguments",
    "engine_environment",
    "llvmlite_hidden",
    "probe_params",
    "sampling_params",
    "scheduler_arguments",
    "to_completion",
    "to_generation",
    "to_probe",
]


_STEP_TOKENS = 4096  # vLLM's own bound on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Log-probabilities of the probe prompt: ``logprobs[t]`` is that of token ``t + 1``."""

    logprobs: np.ndarray  # float32[L - 1]
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer to a prompt, held to a form. ``cached_tokens`` of the prompt were in the prefix
    cache."""

    token_ids: tuple[int, ...]
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """What an engine says of a weight update."""

    version: int
    digest: str  # of the tensors that arrived
    stall_s: float  # how long no step was taken


@contextmanager
def llvmlite_hidden() -> Iterator[None]:
    """While an engine starts in a process that uses numba (as bm25s does).

    To replace Triton kernels on a CPU, vLLM 0.32 reads the ``__dict__`` of all that any module
    holds. llvmlite's handle of its library takes that for the name of a function of the library,
    and vLLM fails on the answer.
    """
    name = "llvmlite.binding.ffi"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


def engine_environment(rollout: RolloutConfig) -> dict[str, str]:
    """Environment variables that an engine's process needs before it imports torch."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if rollout.num_gpus == 0:
        # Dynamo would stall the first log-probabilities by 15 to 25 s on CPU.
        environment["TORCHDYNAMO_DISABLE"] = "1"
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        environment["OMP_NUM_THREADS"] = str(rollout.threads)
    return environment


def engine_arguments(
    policy: PolicyConfig, rollout: RolloutConfig, seed: int, transport: str
) -> dict[str, Any]:
    """Arguments of vLLM's ``EngineArgs``; see the comments for those that matter."""
    from vllm.config.weight_transfer import WeightTransferConfig

    arguments: dict[str, Any] = {
        **scheduler_arguments(policy, rollout),
        "model": policy.path,
        "dtype": policy.dtype,
        "max_model_len": policy.max_model_len,
        "seed": seed,
        "enforce_eager": rollout.enforce_eager,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "generation_config": "vllm",  # sampling is ours alone, not the model directory's
        "logprobs_mode": "processed_logprobs",
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        # else a model that knows nothing fills an answer with blanks
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "weight_transfer_config": WeightTransferConfig(backend=BACKENDS[transport]),
    }
    if rollout.num_gpus == 0:
        arguments["kv_cache_memory_bytes"] = int(rollout.kv_cache_gib * 2**30)
    else:
        arguments["gpu_memory_utilization"] = rollout.gpu_memory_utilization
    return arguments


def scheduler_arguments(policy: PolicyConfig, rollout: RolloutConfig) -> dict[str, Any]:
    """Those of ``EngineArgs`` that say what an engine computes in one step."""
    arguments: dict[str, Any] = {
        "max_num_seqs": rollout.max_num_seqs,
        "enable_prefix_caching": rollout.prefix_caching,
        "async_scheduling": False,  # a step's tokens belong to the weights of that step
    }
    if not rollout.chunked_prefill:  # a step must then have room for the longest prompt
        room = max(policy.max_model_len, rollout.max_num_seqs, _STEP_TOKENS)
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": room}
    return arguments


def sampling_params(
    sampling: Sampling, stop_strings: Sequence[str], stop_token_ids: Sequence[int]
) -> Any:
    """vLLM's parameters of one round: the sampled token's log-probability, and all at the end.

    There is no seed: vLLM's CPU build dies of per-request seeds with chunked prefill.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_round_tokens,
        stop=list(stop_strings) or None,
        stop_token_ids=list(stop_token_ids) or None,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(stop_strings),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def completion_params(temperature: float, max_tokens: int, json_schema: dict[str, Any]) -> Any:
    """vLLM's parameters of an answer that can be nothing but JSON of the schema."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    return SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(json=json_schema),
    )


def probe_params() -> Any:
    """vLLM's parameters for the log-probabilities of a prompt, its prefix cache not read."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        skip_reading_prefix_cache=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def renew_salts(llm: Any, salt: str) -> None:
    """Requests of which nothing is computed (they wait, or lost their cache) share prefixes under
    ``salt`` from now on, as those that are added later do. ``llm`` is not stepping."""
    for request in llm.engine_core.engine_core.scheduler.requests.values():
        if not request.num_computed_tokens:
            request.cache_salt = salt
            request.block_hashes.clear()
            request.update_block_hashes()


def to_probe(output: Any, length: int) -> Probe:
    """A finished probe of ``length`` tokens."""
    flat = output.prompt_logprobs
    return Probe(
        logprobs=np.array(
            [flat.logprobs[flat.start_indices[t]] for t in range(1, length)], dtype=np.float32
        ),
        version=int(output.outputs[0].weight_versions[0].version),
    )


def to_completion(output: Any) -> Completion:
    """A finished answer."""
    return Completion(
        token_ids=tuple(output.outputs[0].token_ids),
        cached_tokens=int(output.num_cached_tokens or 0),
    )


def to_generation(output: Any) -> Generation:
    """A finished request's tokens as sampled, with the weight version of each."""
    completion = output.outputs[0]
    token_ids = np.array(completion.token_ids, dtype=np.int32)
    flat = completion.logprobs
    versions = np.empty(len(token_ids), dtype=np.int32)
    for span in completion.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    return Generation(
        token_ids=token_ids,
        logprobs=np.array([flat.logprobs[i] for i in flat.start_indices], dtype=np.float32),
        versions=versions,
        stopped=completion.finish_reason == "stop",
    )
