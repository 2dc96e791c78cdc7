"""A vLLM engine inside this process: tokens in, tokens out, weights changed between two steps.

One thread owns vLLM and does nothing but step it. Everything else (a request, a weight update)
is a command that this thread carries out between two steps; that is why an update needs no
request to be aborted, and why every token has exactly one weight version.

    caller (asyncio)                    stepping thread
    generate() ── command: add ──────►  inbox ► step ► step ► ... finished ─► Future
    update_weights() ── command ─────►  between two steps: load, count the version up

See docs/adr/0002-in-process-vllm-engine.md for why this is not ``AsyncLLM``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.weight_receivers import BACKENDS, register_receivers
from pipeline.config import PolicyConfig, RolloutConfig
from pipeline.errors import InfrastructureError
from pipeline.types import Generation, Sampling

__all__ = ["Engine", "Probe", "WeightReceipt", "engine_environment"]

_Command = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Log-probabilities of the probe prompt: ``logprobs[t]`` is that of token ``t + 1``."""

    logprobs: np.ndarray  # float32[L - 1]
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReceipt:
    """What an engine says of a weight update."""

    version: int
    digest: str  # of the tensors that arrived
    stall_s: float  # how long no step was taken


def engine_environment(rollout: RolloutConfig) -> dict[str, str]:
    """Environment variables an engine process needs BEFORE it imports torch and vllm."""
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


class Engine:
    """One vLLM engine. Blocks until the model is loaded.

    ``transport`` names how weights will come (a key of `weight_receivers.BACKENDS`).
    ``seed`` seeds the engine as a whole; requests carry none (vLLM's CPU build dies of them).
    Raises whatever vLLM raises while loading.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        rollout: RolloutConfig,
        seed: int,
        *,
        transport: str = "object_store",
    ) -> None:
        os.environ.update(engine_environment(rollout))
        self._arguments = _engine_arguments(policy, rollout, seed, transport)
        self._inbox: queue.SimpleQueue[tuple[_Command, Future[Any]] | None] = queue.SimpleQueue()
        self._running: dict[str, Future[Any]] = {}
        self._ids = itertools.count()
        self._version = 0
        self._num_updates = 0
        self._paused = False
        self._failure: BaseException | None = None
        self.generated_tokens = 0
        self.busy_s = 0.0
        self.idle_s = 0.0
        self.stall_s = 0.0
        loaded: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(loaded,), name="vllm-steps", daemon=True
        )
        self._thread.start()
        loaded.result()

    @property
    def version(self) -> int:
        """The weight version that the next token will be sampled with."""
        return self._version

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> Generation:
        """Sample one continuation of ``prompt_ids``.

        The returned ids are those sampled, the stop token (or the tokens that hold the stop
        string) included. Log-probabilities are those of the distribution sampled from; at
        temperature 0 the argmax is taken and they are those of temperature 1.
        Raises ValueError for a prompt that vLLM refuses and InfrastructureError where the engine
        died; when the caller is cancelled the request is aborted.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
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
        return _generation(await self._request(prompt_ids, params))

    async def probe(self, token_ids: Sequence[int]) -> Probe:
        """Log-probabilities of the prompt itself, computed anew (the prefix cache is not read)."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._request(token_ids, params)
        logprobs = output.prompt_logprobs
        return Probe(
            logprobs=np.array(
                [logprobs.logprobs[logprobs.start_indices[t]] for t in range(1, len(token_ids))],
                dtype=np.float32,
            ),
            version=int(output.outputs[0].weight_versions[0].version),
        )

    # vLLM's weight-transfer life cycle. Between start and finish no step is taken, and a failure
    # in it ends the engine: nobody knows which weights it would hold.

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Open the transport (once). ``init_info`` is the transport's own."""
        await self._weight_rpc("init_weight_transfer_engine", init_info)

    async def start_weight_update(self) -> None:
        """Stop stepping and get ready to receive."""

        def start() -> None:
            self._paused = True
            self._paused_at = time.monotonic()
            self._llm.collective_rpc("start_weight_update")

        await self._between_steps(start, fatal=True)

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receive some or all tensors. ``update_info`` is the transport's own."""
        await self._weight_rpc("update_weights", update_info)

    async def finish_weight_update(self, version: int) -> WeightReceipt:
        """Put the weights to use as ``version`` and step on.

        Running requests go on with the new weights over their old KV cache; a request admitted
        from now on never reads a prefix that older weights computed (its cache salt differs).
        """

        def finish() -> WeightReceipt:
            self._llm.collective_rpc("finish_weight_update")
            self._num_updates += 1
            self._set_version(version)
            digests = set(self._llm.collective_rpc(_received_digest))
            self._paused = False
            stall_s = time.monotonic() - self._paused_at
            self.stall_s += stall_s
            digest = digests.pop() if len(digests) == 1 else "the engine's ranks disagree"
            return WeightReceipt(version=version, digest=digest, stall_s=stall_s)

        receipt: WeightReceipt = await self._between_steps(finish, fatal=True)
        return receipt

    async def between_steps(self, action: Callable[[Any], Any]) -> Any:
        """Run ``action(llm_engine)`` between two steps (diagnostics and tests)."""
        return await self._between_steps(lambda: action(self._llm))

    @property
    def failure(self) -> BaseException | None:
        """What ended the engine; None while it is well."""
        return self._failure

    def stats(self) -> dict[str, float]:
        """Totals: sampled tokens; seconds spent stepping, without work, and in weight updates."""
        return {
            "generated_tokens": float(self.generated_tokens),
            "busy_s": self.busy_s,
            "idle_s": self.idle_s,
            "stall_s": self.stall_s,
        }

    def close(self) -> None:
        """Stop the stepping thread; running requests fail with InfrastructureError."""
        self._inbox.put(None)
        self._thread.join()

    async def _request(self, prompt_ids: Sequence[int], params: Any) -> Any:
        request_id = str(next(self._ids))
        done: Future[Any] = Future()
        self._submit(lambda: self._add(request_id, list(prompt_ids), params, done), done)
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            self._submit(lambda: self._abort(request_id), Future())
            raise

    async def _weight_rpc(self, method: str, info: dict[str, Any]) -> None:
        def call() -> None:
            self._llm.collective_rpc(method, args=(info,))

        await self._between_steps(call, fatal=True)

    async def _between_steps(self, action: Callable[[], Any], *, fatal: bool = False) -> Any:
        done: Future[Any] = Future()

        def command() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(action())
            except Exception as error:
                done.set_exception(error)
                if fatal:
                    raise

        self._submit(command, done)
        return await asyncio.wrap_future(done)

    def _submit(self, command: _Command, done: Future[Any]) -> None:
        self._inbox.put((command, done))
        if self._failure is not None:
            self._fail_everything()

    # Everything below runs on the stepping thread.

    def _run(self, loaded: Future[None]) -> None:
        try:
            self._load()
        except BaseException as error:
            self._failure = error
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while self._obey():
                self._step()
            self._failure = RuntimeError("closed")
        except BaseException as error:
            self._failure = error
        self._fail_everything()

    def _load(self) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        register_receivers()
        self._llm = LLMEngine.from_engine_args(EngineArgs(**self._arguments))
        self._set_version(0)

    def _set_version(self, version: int) -> None:
        self._version = version
        self._llm.set_weight_version(str(version))

    def _obey(self) -> bool:
        """Carry out what is in the inbox; wait for it where there is nothing to step."""
        while True:
            stepping = bool(self._running) and not self._paused
            began = time.monotonic()
            try:
                item = self._inbox.get(block=not stepping)
            except queue.Empty:
                return True
            self.idle_s += 0.0 if stepping else time.monotonic() - began
            if item is None:
                return False
            item[0]()

    def _step(self) -> None:
        began = time.monotonic()
        for output in self._llm.step():
            if not output.finished:
                continue
            self.generated_tokens += len(output.outputs[0].token_ids)
            done = self._running.pop(output.request_id, None)
            if done is not None and done.set_running_or_notify_cancel():
                done.set_result(output)
        self.busy_s += time.monotonic() - began

    def _add(self, request_id: str, prompt_ids: list[int], params: Any, done: Future[Any]) -> None:
        from vllm.inputs.engine import tokens_input

        prompt = tokens_input(prompt_ids, cache_salt=f"update-{self._num_updates}")
        try:
            self._llm.add_request(request_id, prompt, params)
        except Exception as error:  # vLLM refuses this request; the engine is well
            if done.set_running_or_notify_cancel():
                done.set_exception(ValueError(str(error)))
            return
        self._running[request_id] = done

    def _abort(self, request_id: str) -> None:
        if self._running.pop(request_id, None) is not None:
            self._llm.abort_request([request_id])

    def _fail_everything(self) -> None:
        """Fail what runs and what waits in the inbox (also called where a command came late)."""
        error = InfrastructureError(f"the engine is down: {self._failure!r}")
        waiting = list(self._running.values())
        self._running.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._inbox.get_nowait()
                waiting += [item[1]] if item else []
        for done in waiting:
            if not done.done() and done.set_running_or_notify_cancel():
                done.set_exception(error)


def _engine_arguments(
    policy: PolicyConfig, rollout: RolloutConfig, seed: int, transport: str
) -> dict[str, Any]:
    from vllm.config.weight_transfer import WeightTransferConfig

    arguments: dict[str, Any] = {
        "model": policy.path,
        "dtype": policy.dtype,
        "max_model_len": policy.max_model_len,
        "seed": seed,
        "max_num_seqs": rollout.max_num_seqs,
        "enforce_eager": rollout.enforce_eager,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "generation_config": "vllm",  # sampling is ours alone, not the model directory's
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        "async_scheduling": False,  # a step's tokens belong to the weights of that step
        "disable_log_stats": True,
        "weight_transfer_config": WeightTransferConfig(backend=BACKENDS[transport]),
    }
    if rollout.num_gpus == 0:
        arguments["kv_cache_memory_bytes"] = int(rollout.kv_cache_gib * 2**30)
    else:
        arguments["gpu_memory_utilization"] = rollout.gpu_memory_utilization
    return arguments


def _generation(output: Any) -> Generation:
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


def _received_digest(worker: Any) -> str:
    return str(worker.weight_transfer_engine.received.hexdigest())
