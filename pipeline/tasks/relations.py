"""The relations of the default task, loaded from ``relations.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["Lookalikes", "Relation", "Relations", "load_relations"]


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation: its types, where it is read from and how it is worded."""

    name: str
    subject: str  # entity kind
    object: str  # entity kind, or "value"
    phrases: tuple[str, ...]
    nested: tuple[str, ...]
    passage: tuple[str, ...]
    weight: float
    bridge: float = 0.0
    field: tuple[str, ...] = ()
    value: str = ""
    unit: str = ""

    def query(self, subject: str) -> str:
        """The oracle's sub-question."""
        return f"What is {self.phrases[0].format(s=subject)}?"


@dataclass(frozen=True, slots=True)
class Lookalikes:
    """Factbook fields that become look-alike passages."""

    passage: str
    fields: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Relations:
    """All relations by name, the sentence frames of questions, and the look-alike fields."""

    by_name: Mapping[str, Relation]
    wrappers: tuple[str, ...]
    lookalikes: Lookalikes

    def __getitem__(self, name: str) -> Relation:
        return self.by_name[name]


@cache
def load_relations() -> Relations:
    """Parse the data file that ships with this package."""
    text = resources.files("pipeline.tasks").joinpath("relations.toml").read_text("utf-8")
    data = tomllib.loads(text)
    by_name = {
        name: Relation(
            name=name,
            subject=row["subject"],
            object=row["object"],
            phrases=tuple(row["phrases"]),
            nested=tuple(row.get("nested", _right_branching(row["phrases"]))),
            passage=tuple(row["passage"]),
            weight=float(row["weight"]),
            bridge=float(row.get("bridge", 0.0)),
            field=tuple(row.get("field", ())),
            value=row.get("value", ""),
            unit=row.get("unit", ""),
        )
        for name, row in data["relation"].items()
    }
    lookalikes = Lookalikes(
        passage=data["lookalikes"]["passage"],
        fields=tuple(tuple(path) for path in data["lookalikes"]["fields"]),
    )
    return Relations(by_name=by_name, wrappers=tuple(data["wrappers"]), lookalikes=lookalikes)


def _right_branching(phrases: list[str]) -> list[str]:
    return [phrase for phrase in phrases if phrase.endswith("{s}")] or phrases
