"""The words between policy and environment: prompt, action tags, observation.

Two protocols of the field: Search-R1's tags (``search_r1``) and Qwen3's native tool calls
(``qwen3_tools``). Every segment is tokenised on its own and never again: token in, token out.
Passages are untrusted text: tags and special tokens inside them are defused before encoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import ProtocolConfig
from pipeline.errors import UserError
from pipeline.types import Passage

__all__ = ["Action", "SearchProtocol"]

SEARCH_TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search an encyclopaedia and return the most relevant passages.",
        "parameters": {
            "type": "object",
            "properties": {
                "query_list": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Natural-language search queries.",
                }
            },
            "required": ["query_list"],
        },
    },
}

_TAGS = ("think", "search", "information", "answer", "tool_call", "tool_response")
_SEARCH = re.compile(r"<search>((?:(?!<search>).)*?)</search>", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_TAG = re.compile(rf"</?(?:{'|'.join(_TAGS)})>")
_STYLES = ("search_r1", "qwen3_tools")


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a round's text asks for: queries, or an answer, or neither (never both)."""

    reasoning: str
    queries: tuple[str, ...] = ()
    answer: str | None = None


class SearchProtocol:
    """Builds the token segments of an episode and parses what the policy wrote.

    ``tokenizer`` is a transformers tokenizer with a chat template. Raises UserError for an
    unknown style, a tokenizer without chat template, or an example without question or reply.
    """

    def __init__(self, config: ProtocolConfig, tokenizer: Any) -> None:
        if config.style not in _STYLES:
            raise UserError(
                f"protocol.style={config.style!r} is unknown; use one of {', '.join(_STYLES)}"
            )
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'the policy')!r} has no "
                "chat template; take an instruction-tuned policy, or add chat_template.jinja to it"
            )
        for key in ("user", "observation"):
            placeholder = "{question}" if key == "user" else "{passages}"
            if placeholder not in getattr(config, key):
                raise UserError(f"protocol.{key} must contain {placeholder}")
        for example in config.examples:
            if set(example) != {"question", "reply"}:
                raise UserError(
                    "each entry of protocol.examples needs the keys question and reply, and no "
                    f"other; one has {', '.join(example) or 'none'}"
                )
        self.config = config
        self.tokenizer = tokenizer
        self._hostile = self._hostile_pattern(tokenizer)
        self.stop_strings, self.stop_token_ids = self._stops()

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of the conversation up to where the policy begins to write."""
        messages = []
        if self.config.system:
            messages.append({"role": "system", "content": self.config.system})
        for example in self.config.examples:
            messages.append(self._user_message(example["question"]))
            messages.append({"role": "assistant", "content": example["reply"]})
        messages.append(self._user_message(self._defuse(question)))
        tools = [SEARCH_TOOL] if self.config.style == "qwen3_tools" else None
        text = self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
        return self.encode(text)

    def _user_message(self, question: str) -> dict[str, str]:
        return {"role": "user", "content": self.config.user.replace("{question}", question)}

    def observation_text(self, passages: Sequence[Passage]) -> str:
        """What a search appends: the passages inside ``protocol.observation``."""
        shown = [
            self.config.passage.replace("{rank}", str(rank))
            .replace("{title}", self._defuse(p.title))
            .replace("{text}", self._defuse(p.text))
            for rank, p in enumerate(passages, start=1)
        ]
        joined = self.config.passage_separator.join(shown)
        return self.config.observation.replace("{passages}", joined)

    def observation_ids(self, passages: Sequence[Passage]) -> list[int]:
        """Token ids of :meth:`observation_text`."""
        return self.encode(self.observation_text(passages))

    def encode(self, text: str) -> list[int]:
        """Token ids of one segment, without tokens that the tokenizer would add by itself."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Sampled ids as text, for people, rewards and judges (never encoded again)."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def parse(self, text: str) -> Action:
        """The action in a round's text. The first complete action counts.

        A tag opened twice before it closes refuses the first opening: spamming ``<answer>``
        leaves only the last one's text.

        >>> from types import SimpleNamespace
        >>> p = SearchProtocol.__new__(SearchProtocol)
        >>> p.config = SimpleNamespace(style="search_r1", max_queries=1)
        >>> p.parse("<think> Where? </think><search> capital of Chad </search>").queries
        ('capital of Chad',)
        """
        answer = _ANSWER.search(text)
        if self.config.style == "qwen3_tools":
            call = _TOOL_CALL.search(text)
            queries = _tool_queries(call.group(1)) if call else ()
        else:
            call = _SEARCH.search(text)
            queries = _clean_queries([call.group(1)]) if call else ()
        if answer and (call is None or answer.start() < call.start()):
            reasoning = _strip_tags(text[: answer.start()])
            return Action(reasoning=reasoning, answer=answer.group(1).strip())
        reasoning = _strip_tags(text[: call.start()] if call else text)
        return Action(reasoning=reasoning, queries=queries[: self.config.max_queries])

    def _stops(self) -> tuple[list[str], list[int]]:
        """Closing tags as token ids where the tokenizer has them as one token, else as text."""
        closing = ["</search>", "</answer>"] if self.config.style == "search_r1" else ["</answer>"]
        strings, ids = [], []
        for tag in closing:
            encoded = self.encode(tag)
            if len(encoded) == 1:
                ids.append(encoded[0])
            else:
                strings.append(tag)
        if self.tokenizer.eos_token_id is not None:
            ids.append(int(self.tokenizer.eos_token_id))
        return strings, ids

    def _defuse(self, text: str) -> str:
        """Break every tag and special token in untrusted text: ``<`` becomes ``< ``."""
        return self._hostile.sub(lambda m: m.group(0)[0] + " " + m.group(0)[1:], text)

    @staticmethod
    def _hostile_pattern(tokenizer: Any) -> re.Pattern[str]:
        added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
        words = sorted((re.escape(w) for w in added if len(w.strip()) > 1), key=len, reverse=True)
        return re.compile("|".join([_TAG.pattern, *words]))


def _strip_tags(text: str) -> str:
    return " ".join(_TAG.sub(" ", text).split())


def _clean_queries(queries: Sequence[Any]) -> tuple[str, ...]:
    return tuple(q.strip() for q in queries if isinstance(q, str) and q.strip())


def _tool_queries(body: str) -> tuple[str, ...]:
    """Queries of a tool call's JSON; a malformed call asks for nothing."""
    try:
        call = json.loads(body)
        arguments = call["arguments"] if call["name"] == "search" else {}
        queries = arguments.get("query_list", arguments.get("query", []))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
    return _clean_queries([queries] if isinstance(queries, str) else list(queries or []))
