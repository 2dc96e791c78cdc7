"""Divides the entities between train, dev and test, so that no question shares any."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping

from pipeline.tasks.knowledge import Entity, KnowledgeBase

__all__ = ["SPLITS", "assign_splits"]

SPLITS: Mapping[str, float] = {"train": 0.62, "dev": 0.10, "test": 0.28}  # shares of entities


def assign_splits(base: KnowledgeBase, seed: int) -> dict[Entity, str]:
    """A split for every entity with facts.

    Countries joined by their longest border stay together (else most chains over a neighbour
    would cross splits); cities and places go with their country, works with their creator.
    A city of a country that has no facts of its own is in no split.
    """
    rng = random.Random(seed)
    split = _spread(_clusters(base), rng)
    free = [[person] for person in base.entities("person")]
    split |= _spread(free, rng)
    for kind in ("city", "place"):
        for entity in base.entities(kind):
            if base.home[entity] in split:
                split[entity] = split[base.home[entity]]
    orphans = []
    for work in base.entities("work"):
        creator = base.facts[work].get("creator")
        if creator and creator.object_entity in split:
            split[work] = split[creator.object_entity]
        else:
            orphans.append([work])
    return split | _spread(orphans, rng)


def _clusters(base: KnowledgeBase) -> list[list[Entity]]:
    """Countries in groups of mutual reach over their longest borders."""
    leader = {country: country for country in base.entities("country")}

    def find(country: Entity) -> Entity:
        while leader[country] != country:
            country = leader[country]
        return country

    for country in base.entities("country"):
        fact = base.facts[country].get("longest_border")
        if fact and fact.object_entity in leader:
            leader[find(country)] = find(fact.object_entity)
    groups: dict[Entity, list[Entity]] = defaultdict(list)
    for country in leader:
        groups[find(country)].append(country)
    return [groups[key] for key in sorted(groups)]


def _spread(groups: list[list[Entity]], rng: random.Random) -> dict[Entity, str]:
    """Draw a split for each group, the largest first, by how much each split still lacks."""
    order = list(groups)
    rng.shuffle(order)
    order.sort(key=len, reverse=True)
    total = sum(len(group) for group in order)
    lacking = {name: share * total for name, share in SPLITS.items()}
    split: dict[Entity, str] = {}
    for group in order:
        fits = [name for name in lacking if lacking[name] >= len(group)] or list(lacking)
        name = rng.choices(fits, [max(lacking[n], 1e-9) for n in fits])[0]
        lacking[name] -= len(group)
        split |= dict.fromkeys(group, name)
    return split
