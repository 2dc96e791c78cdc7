"""A small typed knowledge base: entities, facts, and the passages that are their evidence."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from pipeline.tasks.text import normalise

__all__ = ["Document", "Entity", "Fact", "KnowledgeBase"]

_PLACES = {"city", "place"}


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """Something a question can be about. ``kind``: country, city, place, person or work."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Fact:
    """``relation(subject) = object``, stated by the passage ``evidence``.

    ``object_entity`` is set where the object can itself be asked about (a bridge).
    """

    relation: str
    subject: Entity
    object: str
    aliases: tuple[str, ...]
    evidence: int
    object_entity: Entity | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One passage of the corpus; its id is its position."""

    title: str
    text: str


@dataclass(slots=True)
class KnowledgeBase:
    """Facts by subject and the documents they point into."""

    documents: list[Document] = field(default_factory=list)
    facts: dict[Entity, dict[str, Fact]] = field(default_factory=lambda: defaultdict(dict))
    aliases: dict[Entity, tuple[str, ...]] = field(default_factory=dict)
    home: dict[Entity, Entity] = field(default_factory=dict)  # the country of a city or place
    _numbers: dict[Document, int] = field(default_factory=dict)

    def add_document(self, title: str, text: str) -> int:
        """Append a passage unless the same is there already; its number."""
        document = Document(title, text)
        if document not in self._numbers:
            self._numbers[document] = len(self.documents)
            self.documents.append(document)
        return self._numbers[document]

    def add_fact(self, fact: Fact) -> None:
        """Store a fact; one object a relation and subject (the first one wins)."""
        self.facts[fact.subject].setdefault(fact.relation, fact)

    def entities(self, kind: str) -> list[Entity]:
        """Entities of one kind that have facts, sorted."""
        return sorted(entity for entity in self.facts if entity.kind == kind)

    def drop_ambiguous(self) -> list[Entity]:
        """Remove subjects whose normalised names collide; their passages stay as distractors.

        A country wins over everything and a city over a place. Returns what was removed.
        """
        by_name: dict[str, list[Entity]] = defaultdict(list)
        for entity in self.facts:
            by_name[normalise(entity.name)].append(entity)
        removed = []
        for entities in by_name.values():
            if len(entities) > 1:
                kinds = {entity.kind for entity in entities}
                winner = "country" if "country" in kinds else "city" if kinds == _PLACES else ""
                removed += [entity for entity in entities if entity.kind != winner]
        for entity in removed:
            del self.facts[entity]
        return sorted(removed)
