"""What a judge knows of a language model: messages in, text out, tokens counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.errors import InfrastructureError, StoppedError
from pipeline.judging.prompt import Message

__all__ = ["Budget", "BudgetError", "Chat", "ChatError", "Reply", "Usage"]

log = logging.getLogger(__name__)
_REMEDY = "Remedy: a larger one (a run then goes on with resume=auto), or judge.on_budget=degrade"


class ChatError(InfrastructureError):
    """A model gave no answer, after the client's own retries."""


class BudgetError(StoppedError):
    """The run stops with it: what the judge may spend (judge.budget_tokens, judge.budget_money) is
    spent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. ``cached_tokens`` of the prompt were not computed anew."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Chat(Protocol):
    """A language model."""

    @property
    def model(self) -> str:
        """What tells it from other models in a cache: its name, or a digest of its files."""
        ...

    async def ready(self) -> None:
        """Prove that it answers. Raises what ``complete`` raises."""
        ...

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: dict[str, Any],
        temperature: float,
        max_tokens: int,
    ) -> Reply:
        """The model's answer, held to the JSON schema where it can be.

        Raises ChatError where there is none, UserError for what no retry can mend (a wrong key, an
        unknown model).
        """
        ...

    async def close(self) -> None:
        """Let go of connections and models."""
        ...


class Budget:
    """What may be spent; 0: no limit. ``of`` says by whom. Once it is spent ``allows`` raises or,
    where it ``degrades``, is False; that is logged once."""

    def __init__(
        self,
        *,
        tokens: float = 0.0,
        money: float = 0.0,
        of: str = "a run",
        degrades: bool = False,
    ) -> None:
        self._tokens, self._money, self._of, self._degrades = tokens, money, of, degrades
        self._spent_tokens, self._spent_money = 0, 0.0
        self._told = False

    def spend(self, tokens: int, money: float) -> None:
        """So much more."""
        self._spent_tokens += tokens
        self._spent_money += money

    def allows(self) -> bool:
        """Whether there is something left. Raises BudgetError where there is not, unless it
        degrades."""
        spent = self._spent()
        if not spent:
            return True
        if not self._degrades:
            raise BudgetError(f"{spent}. {_REMEDY}")
        if not self._told:
            self._told = True
            log.warning("%s; from now on rounds stay without verdicts", spent)
        return False

    def _spent(self) -> str:
        """What is spent; empty: nothing is."""
        if 0 < self._tokens <= self._spent_tokens:
            return (
                f"the judge's budget is spent: {self._spent_tokens:,} of {self._tokens:,.0f} "
                f"tokens of {self._of} (judge.budget_tokens)"
            )
        if 0 < self._money <= self._spent_money:
            return (
                f"the judge's budget is spent: {self._spent_money:.2f} of {self._money:.2f} of "
                f"{self._of} (judge.budget_money)"
            )
        return ""


class Usage:
    """What judging costs: totals by name, and what is left of a budget.

    ``calls`` answered, ``prompt_tokens``, ``cached_tokens``, ``completion_tokens``, ``money`` (in
    the currency of the prices, which are for a million tokens), ``call_s`` (seconds between
    question and answer, summed over calls).
    """

    def __init__(
        self, budget: Budget | None = None, *, price_input: float = 0.0, price_output: float = 0.0
    ) -> None:
        self._budget = budget or Budget()
        self._price_input, self._price_output = price_input, price_output
        self.totals: Counter[str] = Counter()

    def add(self, reply: Reply, seconds: float) -> None:
        """A call more."""
        money = reply.prompt_tokens * self._price_input + (
            reply.completion_tokens * self._price_output
        )
        money /= 1e6
        self._budget.spend(reply.prompt_tokens + reply.completion_tokens, money)
        self.totals.update(
            {
                "calls": 1,
                "prompt_tokens": reply.prompt_tokens,
                "cached_tokens": reply.cached_tokens,
                "completion_tokens": reply.completion_tokens,
                "money": money,
                "call_s": seconds,
            }
        )

    def allows_more(self) -> bool:
        """See ``Budget.allows``."""
        return self._budget.allows()
