"""Collects facts and the passages that state them, for the readers of the single sources."""

from __future__ import annotations

import re

from pipeline.tasks.knowledge import Entity, Fact, KnowledgeBase
from pipeline.tasks.relations import Relations
from pipeline.tasks.text import normalise, pick
from pipeline.tasks.values import Value

__all__ = ["MAX_SUBJECT_CHARS", "Builder"]

MAX_SUBJECT_CHARS = 22  # long names cost the small policy many tokens


class Builder:
    """Collects passages and facts; one method a source."""

    def __init__(self, relations: Relations) -> None:
        self.relations = relations
        self.base = KnowledgeBase()
        self.country_by_iso: dict[str, Entity] = {}
        self.country_by_name: dict[str, Entity] = {}
        self.capitals: dict[str, tuple[str, ...]] = {}  # ISO code to names of the capital
        self.city_names: set[str] = set()  # normalised, of subjects and all others
        self.cities: dict[tuple[Entity, str], Entity] = {}

    def state(
        self, relation: str, subject: Entity, value: Value, bridge: Entity | None = None
    ) -> None:
        """Write a passage that states a fact, and store the fact."""
        rule = self.relations[relation]
        sentence = pick(list(rule.passage), f"{relation}|{subject.name}")
        text = sentence.format(s=subject.name, o=value.text)
        evidence = self.base.add_document(subject.name, text[0].upper() + text[1:])
        self.know(relation, subject, value, evidence, bridge)

    def know(
        self,
        relation: str,
        subject: Entity,
        value: Value,
        evidence: int,
        bridge: Entity | None = None,
    ) -> None:
        """Store a fact that an existing passage states."""
        if len(subject.name) > MAX_SUBJECT_CHARS:
            return
        aliases = (*value.aliases, *(self.base.aliases.get(bridge, ()) if bridge else ()))
        aliases = tuple(a for a in dict.fromkeys(aliases) if a != value.text)
        self.base.add_fact(Fact(relation, subject, value.text, aliases, evidence, bridge))

    def country(self, name: str) -> Entity | None:
        """The country of that name or alias."""
        return self.country_by_name.get(normalise(re.sub(r"^the ", "", name, flags=re.I)))
