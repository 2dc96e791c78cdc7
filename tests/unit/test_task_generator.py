"""Knowledge base, splits and questions, on a hand-made world of a few facts."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from pipeline.tasks.knowledge import Entity, Fact, KnowledgeBase
from pipeline.tasks.questions import generate_questions
from pipeline.tasks.relations import load_relations
from pipeline.tasks.splits import assign_splits
from pipeline.types import Question

RELATIONS = load_relations()


def _tell(
    base: KnowledgeBase, relation: str, subject: Entity, value: str, bridge: Entity | None = None
) -> None:
    text = RELATIONS[relation].passage[0].format(s=subject.name, o=value)
    evidence = base.add_document(subject.name, text)
    base.add_fact(Fact(relation, subject, value, (), evidence, bridge))


def _world(countries: int = 30) -> KnowledgeBase:
    """Each country: a capital with its population, a currency code, an area, a next neighbour."""
    base = KnowledgeBase()
    names = [f"{chr(65 + n % 26)}{'ae'[n // 26]}land" for n in range(countries)]
    for number, name in enumerate(names):
        country, city = Entity("country", name), Entity("city", f"{name[:2]}ville")
        neighbour = Entity("country", names[number ^ 1])
        _tell(base, "capital", country, city.name, city)
        _tell(base, "currency_code", country, f"{name[:2].upper()}D")
        _tell(base, "total_area", country, f"{number + 1},000 sq km")
        _tell(base, "longest_border", country, neighbour.name, neighbour)
        _tell(base, "city_country", city, country.name, country)
        _tell(base, "city_population", city, f"{number + 100},000")
        base.home[city] = country
    return base


def _questions(base: KnowledgeBase, seed: int = 0, **counts: int) -> dict[str, list[Question]]:
    split_of = assign_splits(base, seed)
    return {
        split: generate_questions(base, RELATIONS, split_of, split, count, seed)
        for split, count in counts.items()
    }


def _named(questions: list[Question]) -> set[str]:
    plans = [hop for question in questions for hop in question.metadata["plan"]]
    bridges = [hop["answer"] for q in questions for hop in q.metadata["plan"][:-1]]
    return {hop["subject"] for hop in plans} | set(bridges)


def test_no_subject_and_no_bridge_is_shared_between_splits() -> None:
    made = _questions(_world(), train=60, dev=8, test=20)
    for one, other in combinations(made.values(), 2):
        assert not _named(one) & _named(other)


def test_countries_joined_by_their_longest_border_and_their_cities_stay_together() -> None:
    base = _world()
    split_of = assign_splits(base, seed=3)
    for country in base.entities("country"):
        assert split_of[country] == split_of[base.facts[country]["longest_border"].object_entity]
    for city in base.entities("city"):
        assert split_of[city] == split_of[base.home[city]]


def test_the_hops_are_mixed_as_asked() -> None:
    (questions,) = _questions(_world(), train=40).values()
    assert [sum(q.hops == hops for q in questions) for hops in (1, 2, 3)] == [10, 18, 12]


def test_every_hop_asks_for_what_the_hop_before_it_answered() -> None:
    (questions,) = _questions(_world(), train=40).values()
    for question in questions:
        plan = question.metadata["plan"]
        for before, after in pairwise(plan):
            assert after["subject"] == before["answer"]
        assert question.evidence == tuple(hop["evidence"] for hop in plan)
        assert question.answers[0] == plan[-1]["answer"]
        assert plan[0]["subject"] in question.text


def test_the_evidence_of_a_hop_states_its_subject_and_its_answer() -> None:
    base = _world()
    (questions,) = _questions(base, train=40).values()
    for question in questions:
        for hop in question.metadata["plan"]:
            document = base.documents[int(hop["evidence"])]
            assert document.title == hop["subject"]
            assert hop["answer"] in document.text


def test_no_question_holds_an_answer_of_its_hops_or_comes_back_to_its_start() -> None:
    (questions,) = _questions(_world(), train=60).values()
    for question in questions:
        answers = [hop["answer"] for hop in question.metadata["plan"]]
        assert len(set(answers)) == len(answers)
        assert not any(f" {answer}" in question.text for answer in answers)


def test_questions_are_distinct_and_no_answer_dominates() -> None:
    base = _world()
    for country in base.entities("country"):
        base.facts[country]["currency_code"] = Fact("currency_code", country, "EUR", (), 0)
    (questions,) = _questions(base, train=60).values()
    assert len({question.text for question in questions}) == 60
    assert sum(question.answers[0] == "EUR" for question in questions) <= 3


def test_the_same_seed_gives_the_same_questions_and_another_seed_others() -> None:
    first = _questions(_world(), seed=1, train=40)
    assert _questions(_world(), seed=1, train=40) == first
    assert _questions(_world(), seed=2, train=40) != first


def test_a_split_that_cannot_carry_the_questions_says_so() -> None:
    with pytest.raises(ValueError, match=r"dev: only \d+ questions of 5000 possible"):
        _questions(_world(), dev=5000)


def test_a_nested_question_reads_from_the_outside_in() -> None:
    (questions,) = _questions(_world(), train=60).values()
    nested = [q for q in questions if q.metadata["type"] == "longest_border>capital"]
    assert nested
    for question in nested:
        assert question.text.rstrip("?.").endswith(
            (question.metadata["plan"][0]["subject"], "longest land border")
        )


def test_a_subject_with_an_ambiguous_name_is_never_asked_about() -> None:
    base = _world(4)
    georgia, state = Entity("country", "Georgia"), Entity("place", "Georgia")
    springs, work = Entity("city", "Springs"), Entity("work", "SPRINGS")
    _tell(base, "currency_code", georgia, "GEL")
    _tell(base, "city_country", state, "United States")
    _tell(base, "city_population", springs, "120,000")
    _tell(base, "city_population", work, "1,200")
    documents = len(base.documents)
    assert base.drop_ambiguous() == sorted([state, springs, work])
    assert georgia in base.facts
    assert len(base.documents) == documents  # they stay as look-alikes


def test_the_same_passage_is_stored_once() -> None:
    base = KnowledgeBase()
    assert base.add_document("San Juan", "San Juan is a city in Argentina.") == 0
    assert base.add_document("San Juan", "San Juan is a city in Puerto Rico.") == 1
    assert base.add_document("San Juan", "San Juan is a city in Argentina.") == 0


def test_every_relation_has_several_phrasings_and_a_sub_question() -> None:
    for relation in RELATIONS.by_name.values():
        assert len(relation.phrases) >= 3, relation.name
        assert all(phrase.count("{s}") == 1 for phrase in relation.phrases + relation.nested)
        assert all("{s}" in text and "{o}" in text for text in relation.passage)
    assert RELATIONS["capital"].query("Kenya") == "What is the capital city of Kenya?"
