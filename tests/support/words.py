"""A tokenizer of whole words for tests of the episode: reversible, with the tags as tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_TOKEN = re.compile(r"</?[a-z_|]+>|<\|[a-z]+\|>|\s+|[^\s<]+|<")


class WordTokenizer:
    """Every word, space run and tag is a token; ids are given in order of first sight."""

    chat_template = "chat"
    name_or_path = "words"

    def __init__(self) -> None:
        self._ids: dict[str, int] = {"<|end|>": 0}
        self.eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self._ids.setdefault(w, len(self._ids)) for w in _TOKEN.findall(text)]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        words = {i: w for w, i in self._ids.items()}
        return "".join(words[i] for i in token_ids)

    def get_added_vocab(self) -> dict[str, int]:
        return {"<|end|>": 0, "<|user|>": 1}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return "".join(f"<|user|>{m['content']}<|assistant|>" for m in messages)
