"""A judge's model behind an OpenAI-compatible endpoint, by the official client.

The client repeats what may succeed later (no connection, a deadline, 408, 409, 429, 5xx), after
pauses that double, with jitter, and as ``Retry-After`` says. What no retry mends is a UserError; an
endpoint that stalls, so that try after try is late, is a StoppedError. No message holds the key,
whatever the endpoint says.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import StoppedError, UserError
from pipeline.judging.address import check_no_secret
from pipeline.judging.chat import ChatError, Reply
from pipeline.judging.config import JudgeConfig
from pipeline.judging.prompt import Message

__all__ = ["OpenAIChat"]

log = logging.getLogger(__name__)
_OPENAI = "https://api.openai.com/v1"
_NO_KEY = "none"  # servers that ask for no key take any
_SECRET_LENGTH = 8
_LIMITS = ("max_completion_tokens", "max_tokens")  # the second: as it was once called
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
_PROBE = [{"role": "user", "content": 'Answer with {"note": "yes", "ok": true}'}]
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"note": {"type": "string", "maxLength": 8}, "ok": {"type": "boolean"}},
    "required": ["note", "ok"],
    "additionalProperties": False,
}


class _RequestError(ChatError):
    """The endpoint knows the key and the model, and does not take this request."""


class OpenAIChat:
    """Implements ``pipeline.judging.chat.Chat``. Raises UserError where no model is named, or key
    or address cannot be any."""

    def __init__(self, config: JudgeConfig) -> None:
        from openai import AsyncOpenAI

        if not config.model:
            raise UserError("judge.name=openai needs judge.model: the model's name at the endpoint")
        address = _address(config)
        self._config = config
        self._key = _key(config, needed=address == _OPENAI)
        # what the endpoint takes, as ready() finds out: lengths in schemas, and which key of a
        # request bounds the answer
        self._lengths, self._limit = False, _LIMITS[0]
        self._stall = _Stall(_most_late(config))
        self._client = AsyncOpenAI(
            api_key=self._key or _NO_KEY,
            base_url=address,
            timeout=config.call_timeout_s,
            max_retries=config.call_retries,
            http_client=_http_client(
                config.call_timeout_s, _limiter(config.requests_per_minute), self._stall
            ),
        )

    @property
    def model(self) -> str:
        """The model's name, where it is, and how it is held to a verdict's form."""
        return f"{self._config.model}@{self._client.base_url} {self._config.structured}"

    async def ready(self) -> None:
        """One small answer, as verdicts will be asked for. Raises UserError for a wrong key,
        address or model, or settings that the endpoint does not take."""
        try:
            answer = await self._probed()
        except _RequestError as error:
            config = self._config
            raise UserError(
                f"{error}. Remedy: another judge.structured (it is {config.structured}), "
                f"judge.temperature ({config.temperature:g}) or judge.max_tokens "
                f"({config.max_tokens}), as the model allows"
            ) from None
        except ChatError as error:
            raise ChatError(f"{error}. Is judge.base_url right, and the server up?") from None
        if _text(answer) is None:
            raise ChatError(
                f"{self.model} answered no chat completion: {self._told(answer)}. Is "
                "judge.base_url right? Most end in /v1"
            )

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: dict[str, Any],
        temperature: float,
        max_tokens: int,
    ) -> Reply:
        """See ``Chat``. The text is empty where the model said nothing: that, too, costs tokens.
        Raises StoppedError where the endpoint stalls.

        Tokens that the server does not tell are estimated, so that a budget holds all the same.
        """
        known = schema if self._lengths else _without(schema, "maxLength")
        answer = await self._answer(messages, known, temperature, max_tokens)
        text = _text(answer)
        if text is None:
            log.info("%s answered no chat completion: %s", self.model, self._told(answer))
            text = ""
        usage = getattr(answer, "usage", None)
        details = getattr(usage, "prompt_tokens_details", None)
        asked = "".join(message["content"] for message in messages)
        return Reply(
            text=text,
            prompt_tokens=_count(usage, "prompt_tokens") or _estimate(asked),
            completion_tokens=_count(usage, "completion_tokens") or _estimate(text),
            cached_tokens=_count(details, "cached_tokens"),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _probed(self) -> Any:
        """OpenAI's own strict schemas know no ``maxLength``; with most other servers it is all that
        ends the rationale of a small model. Some know the bound of an answer by its old name
        alone."""
        config, refused = self._config, None
        for self._limit, self._lengths in itertools.product(_LIMITS, (True, False)):
            schema = _PROBE_SCHEMA if self._lengths else _without(_PROBE_SCHEMA, "maxLength")
            try:
                return await self._answer(_PROBE, schema, config.temperature, config.max_tokens)
            except _RequestError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    async def _answer(
        self,
        messages: Sequence[Message],
        schema: dict[str, Any],
        temperature: float,
        max_tokens: int,
    ) -> Any:
        """What the endpoint answers, whatever it is; ``None`` for a body that is no JSON."""
        import openai

        try:
            return await self._client.chat.completions.create(
                model=self._config.model,
                messages=list(messages),
                temperature=temperature,
                extra_body={self._limit: max_tokens},
                **_response_format(self._config.structured, schema),
            )
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise UserError(self._refused(error)) from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise _RequestError(f"{self.model} refuses a request: {self._told(error)}") from None
        except openai.APIError as error:
            if isinstance(error, openai.APITimeoutError) and self._stall.found:
                raise StoppedError(self._stalled()) from None
            no_money = error.code in _NO_MONEY or error.type in _NO_MONEY
            if no_money or getattr(error, "status_code", 0) == 402:
                raise UserError(self._refused(error)) from None
            kind = type(error).__name__
            raise ChatError(f"{self.model}: {kind}: {self._told(error)}") from None
        except (ValueError, RecursionError) as error:
            log.info("%s answered no JSON: %s", self.model, self._told(error))
            return None

    def _refused(self, error: Any) -> str:
        config = self._config
        return (
            f"the judge's endpoint refuses us ({self._told(error)}). Remedy: check the key in "
            f"{config.api_key_env} and what it may still spend, "
            f"judge.base_url={self._client.base_url} and judge.model={config.model}"
        )

    def _stalled(self) -> str:
        config = self._config
        return (
            f"the judge's endpoint stalls: {self.model} gave no whole answer within "
            f"{config.call_timeout_s:g} s (judge.call_timeout_s), {self._stall.late} tries in a "
            f"row. Mend it, or allow more time or fewer calls at once (judge.concurrency="
            f"{config.concurrency}), and go on with resume=auto"
        )

    def _told(self, what: Any) -> str:
        """An error with its cause, or an answer: one short line."""
        cause = getattr(what, "__cause__", None)
        told = f"{what} ({cause})" if cause is not None and str(cause) else str(what)
        return " ".join(self._without_key(told).split())[:200]

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key that they refuse. A short one ("EMPTY") is no secret."""
        if len(self._key) < _SECRET_LENGTH:
            return text
        return text.replace(self._key, f"<{self._config.api_key_env}>")


def _address(config: JudgeConfig) -> str:
    url = config.base_url or os.environ.get("OPENAI_BASE_URL", "") or _OPENAI
    where = "judge.base_url" if config.base_url else "the environment variable OPENAI_BASE_URL"
    check_no_secret(url, where, config.api_key_env)
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise UserError(f"{where}={url} is no address; give one like http://127.0.0.1:8000/v1")
    return url


def _key(config: JudgeConfig, *, needed: bool) -> str:
    """The key; empty where there is none."""
    key = os.environ.get(config.api_key_env, "").strip()
    if needed and not key:
        raise UserError(
            f"judge.name=openai: the environment variable {config.api_key_env} holds no key; set "
            "it (for actors on other nodes, in the job's runtime environment), or name another "
            "one in judge.api_key_env"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"judge.name=openai: the environment variable {config.api_key_env} holds no key: there "
            "is a space, a line break or a character in it that keys do not have"
        )
    return key


@dataclass(slots=True)
class _Stall:
    """Tries in a row, whatever their calls, that were late; ``most`` are a stall (0: none is)."""

    most: int
    late: int = 0

    @property
    def found(self) -> bool:
        """Whether no try is worth its time any more."""
        return 0 < self.most <= self.late


def _most_late(config: JudgeConfig) -> int:
    """All calls under way are late twice, and no call is to blame alone: they are two at least."""
    if not config.stop_after_failures:
        return 0
    return 2 * max(config.concurrency, 1 + config.call_retries)


def _http_client(deadline_s: float, limiter: Any, stall: _Stall) -> Any:
    """Sends at an even pace, retries too, gives each try a deadline, and none where the endpoint
    stalls."""
    import httpx2
    from openai import DEFAULT_CONNECTION_LIMITS

    class Client(httpx2.AsyncClient):
        async def send(self, request: Any, **options: Any) -> Any:
            if stall.found:
                raise httpx2.ReadTimeout("the endpoint stalls", request=request)
            async with limiter:
                pass
            try:
                # The client's own timeout begins anew with every byte.
                async with asyncio.timeout(deadline_s):
                    answer = await super().send(request, **options)
            except (TimeoutError, httpx2.TimeoutException):
                stall.late += 1
                raise httpx2.ReadTimeout(
                    f"no whole answer within {deadline_s:g} s", request=request
                ) from None
            stall.late = 0
            return answer

    return Client(timeout=deadline_s, limits=DEFAULT_CONNECTION_LIMITS, follow_redirects=True)


def _text(answer: Any) -> str | None:
    """What the model said: empty where it refused, or thought until its tokens were used up;
    ``None`` where the answer is no chat completion."""
    try:
        content = answer.choices[0].message.content
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
    return content if isinstance(content, str) else ""


def _response_format(structured: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request's ``response_format``."""
    if structured == "none":
        return {}
    if structured == "json_object":
        return {"response_format": {"type": "json_object"}}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": schema, "strict": True},
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
    return value if type(value) is int and value > 0 else 0


def _estimate(text: str) -> int:
    """Tokens of a text, rather too many than too few: one for three characters."""
    return -(-len(text) // 3)
