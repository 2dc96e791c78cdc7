"""Small text helpers of the task: cleaning, folding, cutting."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata

__all__ = ["clean", "cut", "fold", "normalise", "pick"]

_SPECIAL = str.maketrans(
    {
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ı": "i",
        "ß": "ss",
        "æ": "ae",
        "Æ": "Ae",
        "œ": "oe",
        "ʻ": "'",
        "‘": "'",
        "’": "'",
    }
)


def clean(text: str) -> str:
    """Plain text: tags and entities resolved, white space squeezed."""
    text = html.unescape(html.unescape(re.sub(r"<[^>]+>", " ", text)))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).strip()


def fold(text: str) -> str:
    """Without diacritics: ``"São Tomé"`` -> ``"Sao Tome"``."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_SPECIAL))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def normalise(text: str) -> str:
    """Key under which two names count as the same: folded, lower case, letters and digits."""
    return re.sub(r"[^a-z0-9]+", " ", fold(text).lower()).strip()


def cut(text: str, words: int) -> str:
    """The first sentences of ``text`` with at most ``words`` words (at least one word).

    A first sentence that is too long is cut at its last comma inside the limit, else hard.

    >>> cut("One two. Three four five. Six.", 5)
    'One two. Three four five.'
    """
    parts = text.split(" ")
    if len(parts) <= words:
        return text
    head = " ".join(parts[:words])
    ends = [m.end() for m in re.finditer(r"(?<=[a-z0-9\)\"”])[.!?](?= [A-Z\"“])", head + " X")]
    if head.endswith((".", "!", "?")):
        return head
    if ends and ends[-1] > len(head) // 3:
        return head[: ends[-1]]
    comma = max(head.rfind(", "), head.rfind("; "))
    return (head[:comma] if comma > len(head) // 2 else head) + " ..."


def pick(options: list[str], key: str) -> str:
    """One of ``options``, the same one for the same ``key`` on every machine."""
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return options[int.from_bytes(digest[:4], "big") % len(options)]
