"""Generates questions with 1, 2 and 3 hops from the knowledge base."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.tasks.knowledge import Entity, Fact, KnowledgeBase
from pipeline.tasks.relations import Relations
from pipeline.tasks.text import normalise
from pipeline.types import Question

__all__ = ["HOP_SHARES", "MAX_ANSWER_SHARE", "MAX_SUBJECT_SHARE", "generate_questions"]

HOP_SHARES: Mapping[int, float] = {1: 0.25, 2: 0.45, 3: 0.30}
MAX_ANSWER_SHARE = 0.01  # of a split's questions that may have the same answer
MAX_SUBJECT_SHARE = 0.02  # of a split's questions that may start from the same entity

Chain = tuple[Fact, ...]
Shape = tuple[str, ...]


@dataclass(slots=True)
class _Pool:
    """The chains of one shape, in the order in which they will be used."""

    chains: list[Chain]
    weight: float


def generate_questions(
    base: KnowledgeBase,
    relations: Relations,
    split_of: Mapping[Entity, str],
    split: str,
    count: int,
    seed: int,
) -> list[Question]:
    """``count`` questions of one split, shuffled; the same for the same seed.

    Raises ValueError when the entities of the split cannot carry so many.
    """
    rng = random.Random(f"{seed}/{split}")
    members = {entity for entity, name in split_of.items() if name == split}
    answers: Counter[str] = Counter()
    limit = max(3, round(MAX_ANSWER_SHARE * count))
    starts: Counter[Entity] = Counter()
    start_limit = max(6, round(MAX_SUBJECT_SHARE * count))
    questions: dict[str, tuple[Chain, str]] = {}
    for hops, share in HOP_SHARES.items():
        goal = len(questions) + round(share * count)
        pools = _pools(base, relations, members, hops, rng)
        while len(questions) < goal:
            if not pools:
                raise ValueError(f"{split}: only {len(questions)} questions of {count} possible")
            shape = rng.choices(list(pools), [pool.weight for pool in pools.values()])[0]
            chain = pools[shape].chains.pop()
            if not pools[shape].chains:
                del pools[shape]
            answer = normalise(chain[-1].object)
            text = _word(chain, relations, rng)
            start = chain[0].subject
            full = answers[answer] >= limit or starts[start] >= start_limit
            if full or text in questions or _gives_away(chain, text):
                continue
            answers[answer] += 1
            starts[start] += 1
            questions[text] = (chain, text)
    order = list(questions.values())
    rng.shuffle(order)
    return [
        _question(f"{split}-{number:06d}", chain, text, relations)
        for number, (chain, text) in enumerate(order)
    ]


def _pools(
    base: KnowledgeBase,
    relations: Relations,
    members: set[Entity],
    hops: int,
    rng: random.Random,
) -> dict[Shape, _Pool]:
    by_shape: dict[Shape, list[Chain]] = defaultdict(list)
    for entity in sorted(members):
        for chain in _chains(base, relations, members, entity, hops):
            by_shape[tuple(fact.relation for fact in chain)].append(chain)
    pools = {}
    for shape in sorted(by_shape):
        rng.shuffle(by_shape[shape])
        weight = relations[shape[-1]].weight
        for name in shape[:-1]:
            weight *= relations[name].bridge
        pools[shape] = _Pool(by_shape[shape], weight)
    return pools


def _chains(
    base: KnowledgeBase,
    relations: Relations,
    members: set[Entity],
    entity: Entity,
    hops: int,
    path: Chain = (),
) -> Iterator[Chain]:
    """Every walk of ``hops`` facts from ``entity`` that stays in the split and never returns."""
    for name in sorted(base.facts[entity]):
        fact = base.facts[entity][name]
        chain = (*path, fact)
        if hops == 1:
            yield chain
            continue
        bridge = fact.object_entity
        visited = {step.subject for step in chain}
        usable = bridge in members and bridge not in visited and relations[name].bridge > 0
        if bridge is not None and usable:
            yield from _chains(base, relations, members, bridge, hops - 1, chain)


def _word(chain: Chain, relations: Relations, rng: random.Random) -> str:
    phrase = chain[0].subject.name
    for depth, fact in enumerate(chain):
        rule = relations[fact.relation]
        phrase = rng.choice(rule.nested if depth else rule.phrases).format(s=phrase)
    return rng.choice(relations.wrappers).format(phrase=phrase)


def _gives_away(chain: Chain, text: str) -> bool:
    """Whether an answer of any hop stands in the question, or the chain comes back."""
    padded = f" {normalise(text)} "
    objects = [normalise(fact.object) for fact in chain]
    returns = len(set(objects)) < len(objects)
    return returns or any(f" {answer} " in padded for answer in objects)


def _question(number: str, chain: Chain, text: str, relations: Relations) -> Question:
    final = chain[-1]
    evidence = tuple(str(fact.evidence) for fact in chain)
    plan = [
        {
            "relation": fact.relation,
            "subject": fact.subject.name,
            "answer": fact.object,
            "evidence": str(fact.evidence),
            "query": relations[fact.relation].query(fact.subject.name),
        }
        for fact in chain
    ]
    return Question(
        id=number,
        text=text,
        answers=(final.object, *final.aliases),
        source="default",
        evidence=evidence,
        metadata={
            "evidence": list(evidence),
            "hops": len(chain),
            "type": ">".join(fact.relation for fact in chain),
            "plan": plan,
        },
    )
