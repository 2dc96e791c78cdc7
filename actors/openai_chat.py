"""A judge's model behind an OpenAI-compatible endpoint, by the official client.

The client repeats what may succeed later (no connection, a deadline, 408, 409, 429, 5xx), after
pauses that double, with jitter, and as ``Retry-After`` says. What no retry mends is a UserError.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Sequence
from typing import Any

from pipeline.config import JudgeConfig
from pipeline.errors import UserError
from pipeline.judging.chat import ChatError, Reply
from pipeline.judging.prompt import Message

__all__ = ["OpenAIChat"]

_NO_KEY = "none"  # servers that ask for no key take any
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


class OpenAIChat:
    """Implements ``pipeline.judging.chat.Chat``. Raises UserError where no model is named."""

    def __init__(self, config: JudgeConfig) -> None:
        from openai import AsyncOpenAI

        if not config.model:
            raise UserError("judge.name=openai needs judge.model: the model's name at the endpoint")
        key = os.environ.get(config.api_key_env, "")
        if not key and not config.base_url:
            raise UserError(
                f"judge.name=openai: the environment variable {config.api_key_env} holds no key; set "
                "it (for actors on other nodes, in the job's runtime environment), or name another "
                "one in judge.api_key_env"
            )
        self._config = config
        self._client = AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=config.base_url or None,
            timeout=config.call_timeout_s,
            max_retries=config.call_retries,
        )
        self._places = asyncio.Semaphore(config.concurrency)
        self._limiter = _limiter(config.requests_per_minute)

    @property
    def model(self) -> str:
        """The model's name and where it is."""
        return f"{self._config.model}@{self._client.base_url}"

    async def ready(self) -> None:
        """One small answer. Raises UserError for a wrong key, address or model."""
        try:
            await self._answer(
                [{"role": "user", "content": 'Answer with {"ok": true}'}], _PROBE_SCHEMA, 0.0, 16
            )
        except ChatError as error:
            raise ChatError(f"{error}. Is judge.base_url right, and the server up?") from None

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: dict[str, Any],
        temperature: float,
        max_tokens: int,
    ) -> Reply:
        """See ``Chat``."""
        answer = await self._answer(messages, schema, temperature, max_tokens)
        try:
            text = answer.choices[0].message.content
            if not isinstance(text, str):
                raise TypeError("it holds no text")
        except (AttributeError, IndexError, TypeError) as error:
            raise ChatError(f"{self.model} answered no completion: {error}") from None
        usage = getattr(answer, "usage", None)
        details = getattr(usage, "prompt_tokens_details", None)
        return Reply(
            text=text,
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
            cached_tokens=_count(details, "cached_tokens"),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _answer(
        self,
        messages: Sequence[Message],
        schema: dict[str, Any],
        temperature: float,
        max_tokens: int,
    ) -> Any:
        import openai

        try:
            async with self._places, self._limiter:
                return await self._client.chat.completions.create(
                    model=self._config.model,
                    messages=list(messages),
                    temperature=temperature,
                    max_completion_tokens=max_tokens,
                    **_response_format(self._config.structured, schema),
                )
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise UserError(self._refused(error)) from None
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise UserError(self._refused(error)) from None
            raise ChatError(f"{self.model} limits the rate: {_short(error)}") from None
        except openai.APIError as error:
            raise ChatError(f"{self.model}: {type(error).__name__}: {_short(error)}") from None
        except ValueError as error:  # a body that is no JSON
            raise ChatError(f"{self.model} answered no JSON: {_short(error)}") from None

    def _refused(self, error: Any) -> str:
        config = self._config
        return (
            f"the judge's endpoint refuses us ({error.status_code}: {_short(error)}). Remedy: check "
            f"the key in {config.api_key_env}, judge.base_url={config.base_url or '(OpenAI)'} and "
            f"judge.model={config.model}"
        )


def _response_format(structured: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request's ``response_format``; OpenAI's own strict schemas know no ``maxLength``."""
    if structured == "none":
        return {}
    if structured == "json_object":
        return {"response_format": {"type": "json_object"}}
    known = _without(copy.deepcopy(schema), "maxLength")
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": known, "strict": True},
        }
    }


def _without(schema: Any, key: str) -> Any:
    if isinstance(schema, dict):
        return {k: _without(v, key) for k, v in schema.items() if k != key}
    if isinstance(schema, list):
        return [_without(v, key) for v in schema]
    return schema


def _limiter(requests_per_minute: float) -> Any:
    """An asynchronous context that is entered so often a minute, at an even pace."""
    if not requests_per_minute:
        return _Free()
    from aiolimiter import AsyncLimiter

    return AsyncLimiter(1, 60.0 / requests_per_minute)


class _Free:
    """No limit."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *error: object) -> None:
        pass


def _count(owner: Any, name: str) -> int:
    """A number of tokens; 0 where the server tells none, or nonsense."""
    value = getattr(owner, name, 0)
    return value if isinstance(value, int) and value > 0 else 0


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
