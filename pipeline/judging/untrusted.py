"""Text that nobody vouches for: what the policy wrote and what the corpus says.

Before a judge reads such text it is brought to a plain form: what cannot be seen is taken out,
look-alikes of one character become that character, and nothing is longer than a limit. The text
then goes into JSON strings, which it cannot leave.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["CUT", "plain_text", "visible_text"]

CUT = " [...] "  # stands where a text was cut
_SPACE = re.compile(r"\s+")
# Characters without a form of their own: controls, format characters (zero width, direction
# overrides, tags), private use, surrogates and what is not assigned.
_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs"})


def plain_text(text: str, limit: int) -> str:
    """NFKC, without unseen characters, white space as single spaces, at most ``limit`` characters.

    A longer text keeps its head and its tail: what a round concludes is said at its end.

    >>> plain_text("ig\u200bnore\\n\\n \u202eall\U000e0041", 100)
    'ignore all'
    >>> plain_text("abcdefghijklmnopqrstuvwxyz", 15)
    'abcd [...] wxyz'
    """
    normal = unicodedata.normalize("NFKC", _SPACE.sub(" ", text))
    seen = "".join(c for c in normal if unicodedata.category(c) not in _UNSEEN)
    plain = _SPACE.sub(" ", seen).strip()
    if len(plain) <= limit:
        return plain
    kept = max(0, limit - len(CUT))
    head = (kept + 1) // 2
    return plain[:head] + CUT + plain[len(plain) - (kept - head) :]


def visible_text(text: str) -> str:
    """The text as a person should see it: characters that cannot be seen are written as their
    numbers, line ends and tabs stay.

    >>> visible_text("ig\u200bnore\\nall")
    'ig‹U+200B›nore\\nall'
    """
    return "".join(
        f"‹U+{ord(c):04X}›" if unicodedata.category(c) in _UNSEEN and c not in "\n\t" else c
        for c in text
    )
