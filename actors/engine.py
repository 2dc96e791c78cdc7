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
from functools import partial
from typing import Any

from actors.spare_model import open_spare, take_spare
from actors.vllm_io import (
    Completion,
    Probe,
    WeightReceipt,
    completion_params,
    engine_arguments,
    engine_environment,
    llvmlite_hidden,
    probe_params,
    renew_salts,
    sampling_params,
    to_completion,
    to_generation,
    to_probe,
)
from actors.weight_receivers import register_receivers
from pipeline.config import PolicyConfig, RolloutConfig
from pipeline.errors import InfrastructureError
from pipeline.trace import Recorder
from pipeline.types import Generation, Sampling

__all__ = ["Completion", "Engine", "Probe", "WeightReceipt", "engine_environment"]

_Command = Callable[[], None]


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
        self._arguments = engine_arguments(policy, rollout, seed, transport)
        self._wants_spare = rollout.spare_model and rollout.tensor_parallel_size == 1
        self._recomputes = rollout.kv_on_update == "recompute"
        self._inbox: queue.SimpleQueue[tuple[_Command, Future[Any]] | None] = queue.SimpleQueue()
        self._running: dict[str, Future[Any]] = {}
        self._ids = itertools.count()
        self._version = 0
        self._num_updates = 0
        self._paused = False
        self._has_spare = False  # a second model takes the weights while this one computes
        self._failure: BaseException | None = None
        self.recorder = Recorder()  # busy stretches and weight updates
        self._busy_since: float | None = None
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
        """Version of the weights that the next token is sampled with."""
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
        params = sampling_params(sampling, stop_strings, stop_token_ids)
        return to_generation(await self._request(prompt_ids, params))

    async def complete(
        self,
        prompt_ids: Sequence[int],
        *,
        temperature: float,
        max_tokens: int,
        json_schema: dict[str, Any],
    ) -> Completion:
        """An answer that is JSON of the schema (cut off after ``max_tokens``). Raises as
        `generate` does."""
        params = completion_params(temperature, max_tokens, json_schema)
        return to_completion(await self._request(prompt_ids, params))

    async def generate_batch(
        self,
        asked: Sequence[tuple[Sequence[int], Sampling]],
        stop_strings: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> list[Generation]:
        """`generate` for several prompts that enter the engine at once, in this order."""
        requests = [
            (str(next(self._ids)), list(prompt), Future[Any](), sampling)
            for prompt, sampling in asked
        ]

        def add_all() -> None:
            for request_id, prompt, done, sampling in requests:
                params = sampling_params(sampling, stop_strings, stop_token_ids)
                self._add(request_id, prompt, params, done)

        await self._between_steps(add_all)
        outputs = await asyncio.gather(*(asyncio.wrap_future(done) for _, _, done, _ in requests))
        return [to_generation(output) for output in outputs]

    async def set_seed(self, seed: int) -> None:
        """What is sampled from now on depends on ``seed`` and on what is asked, in its order."""

        def set_it() -> None:
            import torch

            torch.manual_seed(seed)

        await self._between_steps(set_it)

    async def probe(self, token_ids: Sequence[int]) -> Probe:
        """Log-probabilities of the prompt itself, computed anew (the prefix cache is not read)."""
        output = await self._request(token_ids, probe_params())
        return to_probe(output, len(token_ids))

    # vLLM's weight-transfer life cycle. A failure in it ends the engine: nobody knows which weights
    # it would hold. With a spare model the engine steps on until the end; else it stands still.

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Open the transport (once). ``init_info`` is the transport's own."""
        await self._weight_rpc("init_weight_transfer_engine", init_info)

    async def start_weight_update(self) -> None:
        """Get ready to receive; without a spare model stop stepping."""
        if self._has_spare:
            await self._weight_rpc("start_weight_update")
            return

        def start() -> None:
            self._stand_still()
            self._llm.collective_rpc("start_weight_update")

        await self._between_steps(start, fatal=True)

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receive tensors, all or (on GPUs) some. ``update_info`` is the transport's own."""
        await self._weight_rpc("update_weights", update_info)

    async def finish_weight_update(self, version: int) -> WeightReceipt:
        """Put the weights to use as ``version`` and step on.

        Running requests go on with the new weights over their old KV cache, or with
        ``rollout.kv_on_update=recompute`` over one that the new weights compute before the next
        token. A request of which nothing is computed yet never reads a prefix that older weights
        computed (its cache salt differs).
        """

        def finish() -> WeightReceipt:
            if not self._paused:
                self._stand_still()
            self._llm.collective_rpc("finish_weight_update")
            if self._has_spare:
                self._llm.collective_rpc(take_spare)
            self._num_updates += 1
            if self._recomputes:
                self._llm.reset_prefix_cache(reset_running_requests=True)
            renew_salts(self._llm, self._salt)
            self._set_version(version)
            digests = set(self._llm.collective_rpc(_received_digest))
            self._paused = False
            stall_s = time.monotonic() - self._paused_at
            self.stall_s += stall_s
            self.recorder.add("weight update", self._update_began, "engine")
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

    async def _weight_rpc(self, method: str, *args: Any) -> None:
        def call() -> None:
            self._llm.collective_rpc(method, args=args)

        if not self._has_spare:
            await self._between_steps(call, fatal=True)
            return
        try:  # it touches nothing that a step reads
            await asyncio.to_thread(call)
        except Exception as error:
            self._submit(partial(_raise, error), Future())
            raise

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
        with llvmlite_hidden():
            self._llm = LLMEngine.from_engine_args(EngineArgs(**self._arguments))
        if self._wants_spare:
            (self._has_spare,) = self._llm.collective_rpc(open_spare)
        self._set_version(0)

    def _stand_still(self) -> None:
        """A weight update stops the steps from here on."""
        self._end_busy()
        self._paused = True
        self._paused_at = time.monotonic()
        self._update_began = self.recorder.now()

    @property
    def _salt(self) -> str:
        """Of the prefixes that the present weights compute."""
        return f"update-{self._num_updates}"

    def _set_version(self, version: int) -> None:
        self._version = version
        self._llm.set_weight_version(str(version))

    def _obey(self) -> bool:
        """Carry out what is in the inbox; wait for it where there is nothing to step."""
        while True:
            stepping = bool(self._running) and not self._paused
            if not stepping:
                self._end_busy()
            began = time.monotonic()
            try:
                item = self._inbox.get(block=not stepping)
            except queue.Empty:
                return True
            self.idle_s += 0.0 if stepping else time.monotonic() - began
            if item is None:
                return False
            item[0]()

    def _end_busy(self) -> None:
        """A stretch of steps without a pause is over."""
        if self._busy_since is not None:
            self.recorder.add("generate", self._busy_since, "engine")
            self._busy_since = None

    def _step(self) -> None:
        began = time.monotonic()
        if self._busy_since is None:
            self._busy_since = self.recorder.now()
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

        prompt = tokens_input(prompt_ids, cache_salt=self._salt)
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


def _raise(error: Exception) -> None:
    raise error


def _received_digest(worker: Any) -> str:
    return str(worker.weight_transfer_engine.received.hexdigest())
