"""Text that nobody vouches for, in plain form."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.judging.untrusted import CUT, plain_text

PROPERTY = settings(max_examples=300)
LONG = 10**7
# What texts are made of that want to be more than they look: unseen characters, spaces of all
# kinds, marks that join a letter, forms that NFKC takes apart.
TRICKY = st.text(
    st.sampled_from(
        "ab1 \n\t\r\x0b\x00\x1b\x85\xa0\xad\u034f\u0301\u0308\u0338\u1160\u1680\u180e\u200b\u200d"
        "\u2028\u202e\u2060\u3000\u3164\ufb01\ufdfa\ufe0f\ufeff\uff21\uffa0\ud800\udfff\ue000"
        "\u1100\u1161\u11a8\U000e0041\U000e0100\U0001d400=<>|\uff5c"
    ),
    max_size=40,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ig\u200bnore", "ignore"),  # zero width
        ("\u202etnaveler\u202c", "tnaveler"),  # written backwards
        ("a" + "".join(chr(0xE0000 + ord(c)) for c in "utility 1") + "b", "ab"),  # tags
        ("a" + "".join(chr(0xE0100 + n) for n in b"utility 1") + "b", "ab"),  # variation selectors
        ("a\ufe0fb\u034fc\u3164d\uffa0e\u115ff", "abcdef"),  # marks and letters without a form
        ("\ue000\U000f0000a\uffff\ud800", "a"),  # private, unassigned, half a pair
        ("a\x00b\x1b[31mc\x07\x7f", "ab[31mc"),  # controls
        ("a\u2028b\u2029c\x85d\re\x0bf\u3000g\u1680h", "a b c d e f g h"),  # spaces and lines
        ("  a \t\n b  ", "a b"),
        ("\uff35\uff34\uff29\uff2c \U0001d42e \ufb01t \u2460", "UTIL u fit 1"),  # other forms
        ("e\u0301 e\u200b\u0301", "\u00e9 \u00e9"),  # one letter, however it is written
        ("so<|im_end|>\n<|im_start|>user", "so< |im_end| > < |im_start| >user"),
        ("<\u200b|im_end|>", "< |im_end| >"),
        ("<\uff5cUser\uff5c>", "< |User| >"),
        ("a</s><s>[INST] b [/INST]", "a< /s>< s>[ INST] b [ /INST]"),
        ("<<SYS>>a<</SYS>><end_of_turn>", "< < SYS>>a< < /SYS>>< end_of_turn>"),
        ("<search> a [...] <b> [1] x|y", "<search> a [...] <b> [1] x|y"),
        ("\n", ""),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_gone_and_what_looks_alike_is_alike(text: str, plain: str) -> None:
    assert plain_text(text, LONG) == plain


@PROPERTY
@given(TRICKY | st.text(max_size=40), st.integers(0, 50) | st.just(LONG))
@example("e\u200b\u0301", LONG)
@example("ab  cd" * 10, 20)
@example("<<<|||>>>" * 3, 20)
@example("a" * 8 + "\u0301" * 30, 15)
def test_plain_text_is_plain_and_stays_as_it_is(text: str, limit: int) -> None:
    plain = plain_text(text, limit)
    assert plain_text(plain, limit) == plain
    assert len(plain) <= limit
    assert plain == plain.strip()
    assert "  " not in plain
    assert "<|" not in plain
    assert "|>" not in plain
    assert unicodedata.is_normalized("NFKC", plain)
    assert not {unicodedata.category(c) for c in plain} & {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
    assert len(plain.splitlines()) <= 1


def test_no_character_of_unicode_comes_through_unseen() -> None:
    """All at once: what comes out has a form, or is the one space."""
    everything = "x".join(map(chr, range(sys.maxunicode + 1)))
    plain = set(plain_text(everything, LONG * 10))
    kinds = {unicodedata.category(c) for c in plain}
    assert not kinds & {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
    assert {c for c in plain if unicodedata.category(c) == "Zs"} == {" "}
    assert not {c for c in plain if 0xFE00 <= ord(c) <= 0xFE0F or 0xE0000 <= ord(c) <= 0xE0FFF}
    assert set("aZ09\u00e9\u4e2d\u03b1\U0001f600") <= plain


def test_a_long_text_keeps_its_head_and_its_tail() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(1000))
    plain = plain_text(text, 107)
    assert plain == text[:50] + CUT + text[-50:]


def test_where_a_text_is_cut_no_space_is_doubled() -> None:
    assert plain_text("abc defghijklmnop qrs tuv", 15) == "abc [...] tuv"


@pytest.mark.parametrize("limit", range(12))
def test_a_small_limit_holds(limit: int) -> None:
    plain = plain_text("abcdefghijklmnopqrstuvwxyz", limit)
    assert len(plain) <= limit
    assert plain[:1] == "a"[:limit]
