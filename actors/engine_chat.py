"""A judge's model in an engine of ours: vLLM, with answers held to their schema as they are
sampled, and a prefix cache by which the rounds of one trajectory share their history."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engine import Engine, engine_environment
from pipeline.config import PolicyConfig, RolloutConfig
from pipeline.errors import ActorLostError, InfrastructureError, UserError
from pipeline.judging.chat import ChatError, Reply
from pipeline.judging.config import JudgeConfig
from pipeline.judging.prompt import Message
from pipeline.judging.verdict_form import verdict_schema
from pipeline.model_directory import check_model_directory

__all__ = ["EngineChat", "judge_engine_environment", "model_identity"]

_PROBE_CHARS, _PROBE_TOKENS = 8, 8
_HASHED_BYTES = 2**28  # of a larger file so many parts of so many bytes:
_PARTS, _PART_BYTES = 64, 2**16


class EngineChat:
    """Implements ``pipeline.judging.chat.Chat``. Blocks until the model is loaded."""

    def __init__(self, config: JudgeConfig, seed: int = 0) -> None:
        from transformers import AutoTokenizer

        if not config.model:
            raise UserError("judge.name=vllm needs judge.model: a directory or a name on the hub")
        self._config = config
        self._identity = model_identity(config.model)
        self._tokenizer = AutoTokenizer.from_pretrained(config.model)
        self._engine = Engine(_policy(config), _rollout(config), seed)

    @property
    def model(self) -> str:
        """The directory's name, a digest of its files, and in what numbers it computes."""
        return f"{self._identity} {self._config.dtype}"

    async def ready(self) -> None:
        """One short answer. Raises UserError for a model without a chat template."""
        await self.complete(
            [{"role": "user", "content": "Judge."}],
            schema=verdict_schema(None, _PROBE_CHARS),
            temperature=0.0,
            max_tokens=_PROBE_TOKENS,
        )

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: dict[str, Any],
        temperature: float,
        max_tokens: int,
    ) -> Reply:
        """See ``Chat``. Raises ActorLostError where the engine died, UserError where the model's
        chat template refuses the messages."""
        prompt = self._prompt_ids(messages)
        room = self._config.max_model_len - len(prompt)
        if room < 1:
            raise ChatError(
                f"a trace of {len(prompt)} tokens does not fit judge.max_model_len="
                f"{self._config.max_model_len}"
            )
        try:
            answer = await self._engine.complete(
                prompt,
                temperature=temperature,
                max_tokens=min(max_tokens, room),
                json_schema=schema,
            )
        except InfrastructureError as error:
            raise ActorLostError(f"the judge's engine is down: {error}") from error
        return Reply(
            text=self._tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            prompt_tokens=len(prompt),
            completion_tokens=len(answer.token_ids),
            cached_tokens=answer.cached_tokens,
        )

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        from jinja2 import TemplateError

        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                self._without_control(messages),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                enable_thinking=False,  # an answer that is held to a schema holds no thoughts
            )
        except (ValueError, TemplateError) as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"judge.model={self._config.model}: its chat template does not take the judge's "
                f"messages ({told}). Remedy: a model that was trained to chat, or, where it knows "
                'no system message, a judge.prompt whose "system" is empty'
            ) from None
        return ids

    def _without_control(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the model's own control tokens broken up: spelt out in a text they
        would end the turn, or begin another."""
        control = sorted(self._tokenizer.all_special_tokens, key=len, reverse=True)
        broken = []
        for message in messages:
            content = message["content"]
            for token in control:
                content = content.replace(token, f"{token[:1]} {token[1:]}")
            broken.append({**message, "content": content})
        return broken

    async def close(self) -> None:
        """Stop the engine."""
        self._engine.close()


def judge_engine_environment(config: JudgeConfig) -> dict[str, str]:
    """Environment variables of an actor with such a model."""
    return engine_environment(_rollout(config))


def model_identity(name: str) -> str:
    """What tells a model from others: of a directory its name and a digest of its files.

    Raises UserError for a directory that is no model.
    """
    directory = Path(name)
    if not directory.is_dir():
        return name
    check_model_directory(directory, key="judge.model")
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= _HASHED_BYTES:
                digest.update(file.read())
                continue
            for part in range(_PARTS):  # of large weights a sample: a fine-tune changes all of them
                file.seek(part * (size - _PART_BYTES) // (_PARTS - 1))
                digest.update(file.read(_PART_BYTES))
    return f"{directory.resolve().name}-{digest.hexdigest()[:16]}"


def _policy(config: JudgeConfig) -> PolicyConfig:
    return PolicyConfig(path=config.model, dtype=config.dtype, max_model_len=config.max_model_len)


def _rollout(config: JudgeConfig) -> RolloutConfig:
    """An engine's settings: nothing is trained here, so no weights come later."""
    return RolloutConfig(
        threads=config.threads,
        num_gpus=config.num_gpus,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=config.tensor_parallel_size,
        kv_cache_gib=config.kv_cache_gib,
        max_num_seqs=config.max_num_seqs,
        enforce_eager=config.num_gpus == 0,
        spare_model=False,
    )
