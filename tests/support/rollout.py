"""What the tests of engines, pools and weight updates share: small, real stand-ins."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.rollout import RolloutActor
from actors.weight_digest import digest_tensors
from pipeline.config import PolicyConfig, ProtocolConfig, RolloutConfig
from pipeline.types import Passage, Question

POLICY_LENGTH = 512
ROLLOUT = RolloutConfig(
    kv_cache_gib=0.1, max_num_seqs=64, start_timeout_s=240, request_timeout_s=120
)
QUESTION = Question(id="q", text="Which city is the capital of Exampleland?", answers=("Town",))


def policy_config(directory: Path) -> PolicyConfig:
    """The tiny policy, fp32."""
    return PolicyConfig(path=str(directory), max_model_len=POLICY_LENGTH)


def load_model(directory: Path) -> Any:
    """The same policy in transformers, fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def reference_logprobs(model: Any, token_ids: Any, temperature: float = 1.0) -> np.ndarray:
    """float32[L-1]: log-probability of each token after those before it, by transformers."""
    import torch

    ids = torch.tensor([[int(token) for token in token_ids]])
    with torch.no_grad():
        logprobs = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0].numpy()


def perturb(model: Any, *, seed: int, scale: float = 0.02) -> None:
    """An optimizer step of sorts: every weight moves a little."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Hugging Face names to arrays; ``named_parameters`` names a tied head once."""
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


class ModelAsLearner:
    """A transformers model in this process that offers what the publisher needs of a learner."""

    def __init__(self, directory: Path) -> None:
        self.model = load_model(directory)
        self.in_transit: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None

    async def weights(self, *, timeout_s: float) -> tuple[Any, str]:
        tensors = weights_of(self.model)
        digest = digest_tensors(tensors)
        self.in_transit(tensors)
        return tensors, digest

    async def probe_logprobs(self, token_ids: np.ndarray, *, timeout_s: float) -> np.ndarray:
        return reference_logprobs(self.model, token_ids)


async def search_one_passage(query: str, top_k: int) -> tuple[Passage, ...]:
    """A retriever that knows one passage."""
    return (Passage(doc_id="0", title="Exampleland", text="Its capital is Town."),)


def score_zero(question: Question, status: Any, answer: str | None) -> float:
    """A reward nobody can earn."""
    return 0.0


def actor_arguments(directory: Path, **changes: Any) -> dict[str, Any]:
    """Constructor arguments of a RolloutActor on the tiny policy."""
    arguments: dict[str, Any] = {
        "policy": policy_config(directory),
        "protocol": ProtocolConfig(),
        "rollout": ROLLOUT,
        "score": score_zero,
        "search": search_one_passage,
        "seed": 0,
    }
    return {**arguments, **changes}


class CorruptingActor(RolloutActor):
    """A rollout actor whose engine holds one wrong packed weight matrix after each update."""

    async def update_weights(self, tensors: Any, version: int) -> Any:
        receipt = await super().update_weights(tensors, version)
        await self._engine.between_steps(corrupt_one_packed_weight)
        return receipt


class ForgettingActor(RolloutActor):
    """A rollout actor that keeps its old packed output head (vLLM's trap with tied heads)."""

    async def update_weights(self, tensors: Any, version: int) -> Any:
        head = await self._engine.between_steps(lambda llm: model_of(llm).lm_head.cpu_linear)
        receipt = await super().update_weights(tensors, version)

        def put_back(llm: Any) -> None:
            model_of(llm).lm_head.cpu_linear = head

        await self._engine.between_steps(put_back)
        return receipt


def make_actor(kind: str, **arguments: Any) -> RolloutActor:
    """An honest rollout actor, or one of those above."""
    kinds = {
        "honest": RolloutActor,
        "corrupting": CorruptingActor,
        "forgetting": ForgettingActor,
    }
    return kinds[kind](**arguments)


def model_of(llm: Any) -> Any:
    """The torch module inside an in-process vLLM engine."""
    return llm.model_executor.driver_worker.model_runner.model


def spare_of(llm: Any) -> Any:
    """The model that takes the next weights."""
    return llm.model_executor.driver_worker.weight_transfer_engine.spare


def corrupt_one_packed_weight(llm: Any) -> None:
    """Add 1 to ONE element of one packed matrix: probe which by multiplying with unit vectors."""
    layer = model_of(llm).model.layers[-1].mlp.down_proj
    packed = layer.cpu_linear

    def corrupted(x: Any, weight: Any, bias: Any) -> Any:
        out = packed(x, weight, bias)
        out[..., 3] += x[..., 5]
        return out

    layer.cpu_linear = corrupted


class Echo:
    """An actor without any model: for tests of the pool itself."""

    def __init__(self, fail_first: int = 0) -> None:
        self._fail_first = fail_first
        self._gave_up = False

    async def ready(self) -> bool:
        return True

    async def pid(self) -> int:
        return os.getpid()

    async def add(self, a: int, b: int) -> int:
        return a + b

    async def sleep(self, seconds: float) -> float:
        import asyncio

        await asyncio.sleep(seconds)
        return seconds

    def die(self) -> None:
        os.kill(os.getpid(), 9)

    async def die_once(self, marker: str) -> int:
        """Kill this process unless somebody did before; returns the survivor's process id."""
        if not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), 9)
        return os.getpid()

    async def give_up_once(self, marker: str) -> int:
        """Say that this actor is lost, unless one did before; else its process id."""
        from pipeline.errors import ActorLostError

        if not Path(marker).exists():
            Path(marker).touch()
            self._gave_up = True
        if self._gave_up:
            raise ActorLostError("the engine is down")
        return os.getpid()

    async def warn(self, what: str) -> None:
        import logging

        logging.getLogger("actors.echo").warning("%s", what)

    async def refuse(self) -> None:
        from pipeline.errors import UserError

        raise UserError("bad input")

    async def break_down(self) -> None:
        raise KeyError("unexpected")
