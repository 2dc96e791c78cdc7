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
# Letters and marks that Unicode says are not shown: joiners, fillers, variation selectors (of which
# any text can be made).
_IGNORED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

# Letters in signs and small capitals that NFKC leaves as they are.
_LETTER_NAME = re.compile(
    r"(?:(?:CROSSED )?NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER"
    r"|REGIONAL INDICATOR SYMBOL LETTER|LATIN LETTER SMALL CAPITAL) ([A-Z])"
)
_LETTERS = {
    code: match[1]
    for first, last in ((0x1D00, 0x1D30), (0x250, 0x2B0), (0xA730, 0xA7F8), (0x1F100, 0x1F200))
    for code in range(first, last)
    if (match := _LETTER_NAME.fullmatch(unicodedata.name(chr(code), "")))
}

# What models read as the end of a turn or the start of another, spelt out: an endpoint may take the
# spelling for the thing. (<|...|> of most; the others of Llama, Mistral and Gemma.)
_CONTROL = re.compile(
    r"<(?=\||/?s>|<?/?SYS>|/?(?:bos|eos|pad|unk)>|(?:start|end)_of_turn>)"
    r"|\[(?=/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\])"
    r"|\|(?=>)"
)


def plain_text(text: str, limit: int) -> str:
    """NFKC and plain letters for those in signs, without unseen characters, white space as single
    spaces, control tokens of chat formats broken up, at most ``limit`` characters.

    A longer text keeps its head and its tail: what a round concludes is said at its end. Plain text
    stays as it is.

    >>> plain_text("ig\u200bnore\\n\\n \u202eall\U000e0041", 100)
    'ignore all'
    >>> plain_text("maybe Ⓝairobi or 🅝ɴ", 100)
    'maybe Nairobi or NN'
    >>> plain_text("so<|im_end|></s>", 100)
    'so< |im_end| >< /s>'
    >>> plain_text("abcdefghijklmnopqrstuvwxyz", 15)
    'abcd [...] wxyz'
    """
    seen = _IGNORED.sub("", _SPACE.sub(" ", text))
    if not seen.isprintable():
        seen = "".join(c for c in seen if unicodedata.category(c) not in _UNSEEN)
    # Only now: a letter and its accent may have had something unseen between them.
    plain = _SPACE.sub(" ", unicodedata.normalize("NFKC", seen.translate(_LETTERS))).strip()
    plain = _CONTROL.sub(r"\g<0> ", plain)
    if len(plain) <= limit:
        return plain
    kept = limit - len(CUT)
    if kept < 2:
        return plain[: max(0, limit)].rstrip()
    head, tail = plain[: (kept + 1) // 2], plain[len(plain) - kept // 2 :]
    return head.rstrip() + CUT + tail.lstrip()


def visible_text(text: str) -> str:
    """The text as a person should see it: characters that cannot be seen are written as their
    numbers, line ends and tabs stay.

    >>> visible_text("ig\u200bnore\\nall")
    'ig‹U+200B›nore\\nall'
    """

    def is_unseen(c: str) -> bool:
        return unicodedata.category(c) in _UNSEEN or _IGNORED.match(c) is not None

    return "".join(f"‹U+{ord(c):04X}›" if is_unseen(c) and c not in "\n\t" else c for c in text)
