"""Turns factbook fields into short answers with aliases.

Figures are rounded, because the small policy must copy them: two significant digits from
1,000 up, three below; ``about`` in the passages says so. Every reader returns None for a text
that it cannot read with confidence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.tasks.text import fold

__all__ = ["MAX_ANSWER_CHARS", "Value", "name_value", "quantity_value", "read_value"]

MAX_ANSWER_CHARS = 28

_SCALES = {"": 1.0, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_ROYAL_ANTHEM = "God Save the King"  # listed for realms that have an anthem of their own too
_UNIT_ALIASES = {
    "sq km": ("square kilometres", "square kilometers", "km2", "km²"),
    "km": ("kilometres", "kilometers"),
    "metres": ("m", "meters"),
    "years": ("years old", "yrs"),
    "airports": (),
    "": ("people", "inhabitants"),
}
_RANKS = re.compile(
    r"^(?:(?:Acting|Interim|Transitional|Co-|Deputy|Vice|Federal|Supreme|Grand|First|State|His|Her|"
    r"President|Prime|Minister|King|Queen|Emperor|Sultan|Amir|Emir|Sheikh|Prince|Princess|Duke|"
    r"Chancellor|Chairman|Chairperson|Premier|Governor|General|Governor-General|Dr\.|Sir|Dame|"
    r"Gen\.|Brig\.|Lt\.|Col\.|Capt\.|of|the|Highness|Majesty|Council|Taoiseach|Administrator|"
    r"Commissioner|Pope|Captain|Regent|Crown|Leader|Ambassador|Mayor|Chief|Executive|Speaker|"
    r"Marshal|Field|Interior|HRH|Mr\.|Ms\.)[\s,]+)+"
)


@dataclass(frozen=True, slots=True)
class Value:
    """An answer as the passage prints it, and other ways to write the same."""

    text: str
    aliases: tuple[str, ...] = ()


def read_value(kind: str, text: str, unit: str = "") -> Value | None:
    """Read ``text`` as the named ``kind``; None where it does not fit or is too long."""
    if not text or text.lower().startswith(("none", "na ", "n/a")):
        return None
    value = _READERS[kind](text, unit)
    return value if value and 0 < len(value.text) <= MAX_ANSWER_CHARS else None


def name_value(text: str, *aliases: str) -> Value:
    """A name with its diacritics-free variant and without a leading article."""
    variants = [*aliases, *(fold(a) for a in (text, *aliases))]
    return Value(text, tuple(dict.fromkeys(v for v in variants if v and v != text)))


def quantity_value(number: float, unit: str) -> Value:
    """A rounded figure.

    >>> quantity_value(580_367, "sq km").text
    '580,000 sq km'
    >>> quantity_value(55_751_717, "").text
    '56 million'
    >>> quantity_value(21.5, "years").aliases[:2]
    ('21.5', '21.5 years old')
    """
    digits = _round(number)
    spelled = _spell(digits)
    forms = [spelled, _plain(digits), f"{digits:,.0f}" if digits >= 1000 else spelled]
    forms = list(dict.fromkeys(forms))
    units = (unit, *_UNIT_ALIASES[unit]) if unit else _UNIT_ALIASES[""]
    text = f"{spelled} {unit}".strip()
    aliases = [*forms, *(f"{form} {name}" for form in forms for name in units)]
    return Value(text, tuple(a for a in dict.fromkeys(aliases) if a != text))


def _round(number: float) -> float:
    if number == 0:
        return 0.0
    figures = 2 if abs(number) >= 1000 else 3
    return float(f"{number:.{figures}g}")


def _spell(number: float) -> str:
    for word, scale in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {word}"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _plain(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def _number(text: str) -> float | None:
    match = re.match(
        r"(?:approximately |about |total: |~)?(-?\d[\d,]*(?:\.\d+)?)\s*"
        r"(thousand|million|billion|trillion)?\b",
        text,
    )
    if not match:
        return None
    return float(match.group(1).replace(",", "")) * _SCALES[match.group(2) or ""]


def _quantity(text: str, unit: str) -> Value | None:
    number = _number(text)
    if number is None or number <= 0:
        return None
    if unit in ("airports",) and number == 1:
        return None
    return quantity_value(number, unit)


def _percent(text: str, unit: str) -> Value | None:
    match = re.match(r"(-?\d+(?:\.\d+)?)%", text)
    if not match:
        return None
    share = match.group(1)
    return Value(f"{share}%", (f"{share} %", f"{share} percent", f"{share} per cent", share))


def _money(text: str, unit: str) -> Value | None:
    number = _number(text.lstrip("$")) if text.startswith("$") else None
    if number is None or number <= 0:
        return None
    spelled = _spell(_round(number))
    forms = [spelled, spelled.replace(",", "")]
    aliases = [*forms, *(f"{form} dollars" for form in forms), *(f"{f} US dollars" for f in forms)]
    aliases.append(f"${forms[-1]}")
    return Value(f"${spelled}", tuple(a for a in dict.fromkeys(aliases) if a != f"${spelled}"))


def _name(text: str, unit: str) -> Value | None:
    plain = re.sub(r"\s*\([^)]*\)", "", text)
    head = re.split(r"\s*[;,\[]\s*| or | - | note\b| in (?=[A-Z])", plain)[0]
    bracket = re.match(r"[^(]*?\(([^),;]{3,28})\)", text)
    return name_value(head.strip(' "“”.'), _other_name(bracket.group(1) if bracket else ""))


def _other_name(bracket: str) -> str:
    """The other name in a bracket; empty where it holds a remark."""
    name = re.sub(r"^(?:or|aka|also known as|also called) ", "", bracket.strip(' "“”'))
    return name if re.match(r"[A-Z][^\"]*$", name) and " for " not in name else ""


def _capital(text: str, unit: str) -> Value | None:
    """The capital, only where the country has one and no other city shares its duties."""
    if re.search(r"\b(?:administrative|legislative|constitutional|commercial|no official)\b", text):
        return None
    return _name(text, unit)


def _title(text: str, unit: str) -> Value | None:
    match = re.match(r"\W*([^\"“”(]{3,40})[\"”]?\s*(?:\(([^)]*)\))?", text)
    if not match or match.group(1) == _ROYAL_ANTHEM:
        return None
    translation = (match.group(2) or "").strip(' "“”')
    return name_value(match.group(1).strip(' "“”,.'), translation)


def _summit(text: str, unit: str) -> Value | None:
    match = re.match(r"([^\d;(]+?)\s*(?:\(([^)]*)\)\s*)?-?\d[\d,]*(?:\.\d+)?\s*m?\b", text)
    if not match or "unnamed" in text.lower() or ":" in match.group(1):
        return None
    name = re.sub(r"^(?:the|near) (?=[A-Z])| more than$", "", match.group(1).strip(" ,-"))
    return name_value(name, _other_name(match.group(2) or ""))


def _first(text: str, unit: str) -> Value | None:
    name = re.split(r"[,;(]", text)[0].strip()
    return name_value(name) if not re.search(r"\d|small quantities", name) else None


def _first_with_share(text: str, unit: str) -> Value | None:
    match = re.match(r"([A-Z][^\d,;:%(~]*?)\s*(?:\([^)]*\)\s*)?(?:\d|<|~|,|;)", text)
    return name_value(match.group(1)) if match else None


def _officer(text: str, unit: str) -> Value | None:
    head = re.split(r"\(|;|,| represented", text)[0].strip()
    person = _RANKS.sub("", head + " ").strip()
    words = person.split(" ")
    if not 1 < len(words) <= 5 or not any(w.isupper() and len(w) > 1 for w in words):
        return None
    name = " ".join(_lower_case(word) for word in words)
    family = " ".join(_lower_case(w) for w in words if w.isupper() and len(w) > 2)
    return name_value(name, family, head if head != person else "")


def _lower_case(word: str) -> str:
    if not word.isupper() or re.fullmatch(r"[IVX]+|[A-Z]\.", word):
        return word
    return re.sub(r"[^\W\d_]+", lambda match: match.group(0).capitalize(), word)


def _internet_code(text: str, unit: str) -> Value | None:
    match = re.match(r"(\.[a-z]{2})\b", text)
    return Value(match.group(1), (match.group(1)[1:],)) if match else None


def _code(text: str, unit: str) -> Value | None:
    match = re.match(r"([A-Z0-9]{1,4})\b(?!-)", text)
    return Value(match.group(1)) if match else None


_READERS: dict[str, Callable[[str, str], Value | None]] = {
    "quantity": _quantity,
    "percent": _percent,
    "money": _money,
    "name": _name,
    "capital": _capital,
    "title": _title,
    "summit": _summit,
    "first": _first,
    "first_with_share": _first_with_share,
    "officer": _officer,
    "internet_code": _internet_code,
    "code": _code,
}
