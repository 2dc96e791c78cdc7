"""The teacher's episodes: what each habit writes, and what is learnt of it."""

from __future__ import annotations

import random

import pytest

from pipeline.config import ProtocolConfig
from pipeline.episode.protocol import SearchProtocol
from pipeline.types import Passage
from pipeline.warmstart.encode import encode_episode
from pipeline.warmstart.habits import Habit
from pipeline.warmstart.script import Mix, ScriptedEpisode, Scripter
from pipeline.warmstart.tokenizer import train_tokenizer
from tests.support.warmstart_world import World

WORLD = World()
ALWAYS = Mix(habits=1.0)


def write(hops: int, habit: Habit | None, mix: Mix, seed: int = 0) -> ScriptedEpisode:
    scripter = Scripter(retrieve=WORLD.search, book=WORLD.book(habit), max_rounds=4)
    episode = scripter.write(WORLD.question(hops), mix, random.Random(seed))
    assert episode is not None
    return episode


@pytest.fixture(scope="module")
def protocol() -> SearchProtocol:
    return SearchProtocol(ProtocolConfig(), train_tokenizer(WORLD.texts(), vocab_size=400))


def test_a_clean_episode_plans_then_asks_hop_by_hop_and_answers() -> None:
    episode = write(3, None, Mix())
    home, city, leader = episode.question.hops
    assert [r.text for r in episode.rounds] == [
        f"<think> Plan: country, capital, mayor. Next: country of {home.subject}. </think>"
        f"<search> What is the country of {home.subject}? </search>",
        f"<think> The country is {home.answer}. Next: capital of {home.answer}. </think>"
        f"<search> What is the capital of {home.answer}? </search>",
        f"<think> The capital is {city.answer}. Next: mayor of {city.answer}. </think>"
        f"<search> Who is the mayor of {city.answer}? </search>",
        f"<think> The mayor is {leader.answer}. Done. </think><answer> {leader.answer} </answer>",
    ]
    assert episode.habit is None


def test_a_premature_answer_is_the_entity_before_the_last_hop() -> None:
    episode = write(3, Habit.PREMATURE, ALWAYS)
    assert episode.habit is Habit.PREMATURE
    assert len(episode.rounds) == 3
    assert episode.rounds[-1].answer == episode.question.hops[1].answer


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_redundant_searcher_repeats_the_last_query_until_the_rounds_are_spent(hops: int) -> None:
    episode = write(hops, Habit.REDUNDANT, ALWAYS)
    queries = [hop.query for hop in episode.question.hops]
    assert [r.query for r in episode.rounds] == queries + queries[-1:] * (4 - hops)


def test_an_off_relation_search_ends_in_the_other_relations_value() -> None:
    episode = write(2, Habit.OFF_RELATION, ALWAYS)
    land = episode.question.hops[-1].subject
    other = WORLD.hops["capital", land]
    assert episode.rounds[-2].query == other.query
    assert episode.rounds[-1].answer == other.answer != episode.question.answer


def test_an_off_relation_search_breaks_off_where_nobody_knows_the_value() -> None:
    scripter = Scripter(
        retrieve=lambda query: (), book=WORLD.book(Habit.OFF_RELATION, known={}), max_rounds=4
    )
    episode = scripter.write(WORLD.question(1), ALWAYS, random.Random(0))
    assert episode is not None
    assert [r.answer for r in episode.rounds] == [None]


def test_a_vague_searcher_asks_for_the_bare_subject_and_recovers() -> None:
    episode = write(1, Habit.VAGUE, ALWAYS)
    hop = episode.question.hops[0]
    assert [r.query for r in episode.rounds] == [hop.subject, hop.query, None]
    assert episode.rounds[1].reasoning.startswith("Not found. Try: ")
    assert episode.rounds[-1].answer == hop.answer


def test_giving_up_answers_unknown() -> None:
    assert write(2, Habit.GIVE_UP, ALWAYS).rounds[-1].answer == "unknown"


@pytest.mark.parametrize(("hops", "searches"), [(1, 0), (2, 1), (3, 2)])
def test_a_guess_is_in_no_passage_that_was_retrieved(hops: int, searches: int) -> None:
    episode = write(hops, Habit.GUESS, ALWAYS)
    assert len(episode.rounds) == searches + 1
    assert episode.rounds[-1].answer == "Atlantis"
    assert not any("Atlantis" in p.text for r in episode.rounds for p in r.passages)


def test_an_idle_guess_changes_words_but_neither_query_nor_answer() -> None:
    episode, clean = write(2, None, Mix(idle_guess=1.0)), write(2, None, Mix())
    assert episode.rounds[0].reasoning.startswith("Maybe Atlantis. Plan: ")
    assert [r.query for r in episode.rounds] == [r.query for r in clean.rounds]
    assert episode.rounds[-1].answer == clean.rounds[-1].answer


def test_a_failed_query_is_rephrased_once() -> None:
    hop = WORLD.question(1).hops[0]

    def search(query: str) -> tuple[Passage, ...]:
        return () if query == hop.query else WORLD.search(query)

    scripter = Scripter(retrieve=search, book=WORLD.book(), max_rounds=4)
    episode = scripter.write(WORLD.question(1), Mix(), random.Random(0))
    assert episode is not None
    assert episode.rounds[1].reasoning.startswith("Not found. Try: ")
    assert episode.rounds[1].query == f"capital of {hop.subject}"
    assert episode.rounds[-1].answer == hop.answer


def test_no_episode_where_the_evidence_is_never_found() -> None:
    scripter = Scripter(retrieve=lambda query: (), book=WORLD.book(), max_rounds=4)
    assert scripter.write(WORLD.question(1), Mix(), random.Random(0)) is None


def test_a_slip_is_shown_but_not_learnt_and_the_answer_is_still_right() -> None:
    kinds = set()
    for seed in range(24):
        episode = write(1, None, Mix(slip=1.0), seed)
        (slip,) = (r for r in episode.rounds if not r.trained)
        kinds.add(slip.query)
        assert episode.rounds[-1].answer == episode.question.answer
    assert len(kinds) == 3  # vague, the same query again, another relation


def test_a_slip_needs_a_spare_round() -> None:
    assert all(r.trained for r in write(3, None, Mix(slip=1.0)).rounds)


@pytest.mark.parametrize("habit", list(Habit))
def test_a_habit_differs_from_the_clean_episode_at_the_word_after_the_relation(
    habit: Habit,
) -> None:
    bad, clean = (
        " ".join(r.text for r in write(2, h, mix).rounds).replace("?", " ?").split()
        for h, mix in ((habit, ALWAYS), (None, Mix()))
    )
    same = next(i for i, (a, b) in enumerate(zip(bad, clean, strict=False)) if a != b)
    assert clean[same - 1] == "river" and clean[same] in ("of", "is")


@pytest.mark.parametrize("habit", list(Habit))
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_no_episode_is_longer_than_its_budget(habit: Habit, hops: int) -> None:
    for seed in range(6):
        assert len(write(hops, habit, Mix(habits=0.6, slip=0.5), seed).rounds) <= 4


def test_exactly_the_policys_own_tokens_are_learnt(protocol: SearchProtocol) -> None:
    episode = write(3, Habit.VAGUE, Mix(habits=0.5))
    encoded = encode_episode(episode, protocol)
    learnt = [t for t, trained in zip(encoded.token_ids, encoded.trained, strict=True) if trained]
    assert protocol.decode(learnt) == "".join(r.text for r in episode.rounds)


def test_an_episode_is_the_concatenation_of_segments_tokenised_alone(
    protocol: SearchProtocol,
) -> None:
    episode = write(2, None, Mix())
    expected = protocol.prompt_ids(episode.question.question.text)
    for scripted in episode.rounds:
        expected += protocol.encode(scripted.text)
        if scripted.query is not None:
            expected += protocol.observation_ids(scripted.passages)
    assert encode_episode(episode, protocol).token_ids == expected


def test_an_untrained_slip_is_masked(protocol: SearchProtocol) -> None:
    episode = write(1, None, Mix(slip=1.0))
    encoded = encode_episode(episode, protocol)
    learnt = [t for t, trained in zip(encoded.token_ids, encoded.trained, strict=True) if trained]
    assert protocol.decode(learnt) == "".join(r.text for r in episode.rounds if r.trained)
    assert protocol.parse(episode.rounds[-1].text).answer == episode.question.answer
