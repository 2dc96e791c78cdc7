"""The evidence judge's rule, case by case."""

import random
import re
import unicodedata

import pytest

from pipeline.episode.evidence import (
    _OPENERS,
    _fold,
    entities,
    flip_verdicts,
    judge_by_evidence,
)
from pipeline.types import Round, Verdict
from tests.support.scripted import question, search_round, trajectory

ASKED = question("What is the currency of the country of Lyon?", ["Euro"], ["1", "2"])
FOUND_1 = search_round("country of Lyon", ["1", "9"])
ANSWERED = search_round(answer="Euro")


def signals(*rounds: Round, asked=ASKED):
    verdicts = judge_by_evidence(trajectory(*rounds, ANSWERED, asked=asked))
    return [(v.utility, v.correctness) for v in verdicts]


def test_new_evidence_by_a_grounded_query_is_useful_and_correct():
    assert signals(FOUND_1) == [(1.0, 1.0)]


def test_the_same_evidence_twice_is_not_new_and_repeating_a_success_is_not_correct():
    assert signals(FOUND_1, FOUND_1) == [(1.0, 1.0), (0.0, 0.0)]


def test_repeating_a_success_in_other_case_and_punctuation_is_a_repeat():
    again = search_round("Country of  Lyon?", ["2"])
    assert signals(FOUND_1, again)[1] == (1.0, 0.0)


def test_a_retry_of_a_query_that_failed_is_correct():
    failed = search_round("country of Lyon", ["9"])
    assert signals(failed, FOUND_1) == [(0.0, 1.0), (1.0, 1.0)]


def test_an_entity_out_of_nowhere_is_not_correct_even_where_it_finds_evidence():
    guess = search_round("currency of France", ["2"])
    assert signals(guess) == [(1.0, 0.0)]


def test_an_entity_of_an_earlier_passage_may_be_used():
    # the passages of search_round are titled Chad
    assert signals(FOUND_1, search_round("currency of Chad", ["2"]))[1] == (1.0, 1.0)


def test_an_entity_in_the_reasoning_counts_too():
    guess = search_round("currency of the country", ["2"], reasoning="It must be France.")
    assert signals(guess) == [(1.0, 0.0)]


def test_searching_on_when_all_evidence_is_found_is_not_correct():
    assert signals(FOUND_1, search_round("more", ["2"]), search_round("still more", ["8"]))[2] == (
        0.0,
        0.0,
    )


def test_unknown_evidence_gives_no_verdict_rather_than_zero():
    asked = question(evidence=None)
    assert judge_by_evidence(trajectory(FOUND_1, ANSWERED, asked=asked)) == (None,)


def test_the_answer_round_is_not_judged():
    assert judge_by_evidence(trajectory(ANSWERED)) == ()


def test_words_that_open_a_sentence_are_no_entities_but_names_and_numbers_are():
    text = "The country is New Zealand. Next: area of it in 1990? Ørsted I know."
    assert entities(text) == {"new", "zealand", "1990", "ørsted"}


@pytest.mark.parametrize("capital", ["Ⓝ", "🅝", "🅽", "🇳", "ɴ", "𝐍", "\uff2e", "\u200bN"])
@pytest.mark.parametrize("where", ["reasoning", "query"])
def test_a_guess_in_other_capitals_is_a_guess(capital, where):
    said = {
        "reasoning": "Next: country.",
        "query": "country of Lyon",
        where: f"maybe {capital}airobi",
    }
    guess = search_round(said["query"], ["1"], reasoning=said["reasoning"])
    assert signals(guess) == [(1.0, 0.0)]


def test_names_that_are_not_english_are_names_and_known_however_they_are_encoded():
    text = "from Ångström via Éire, Żółć and \u212bs to ŁÓDŹ by æther, ‘čeština’ and 北京"
    assert entities(text) == {"angstrom", "eire", "zołc", "as", "łodz"}
    decomposed = unicodedata.normalize("NFD", "What is the currency of Côte d'Ivoire?")
    asked = question(decomposed, ["Franc"], ["1"])
    assert signals(search_round("currency of Côte d’Ivoire", ["1"]), asked=asked) == [(1.0, 1.0)]


def test_a_guess_in_the_middle_of_a_long_text_is_seen():
    filling = "and so on " * 1000
    guess = search_round(f"{filling} France {filling}", ["1"])
    assert signals(guess) == [(1.0, 0.0)]


def test_a_repetition_brings_the_same_passages_in_whatever_order_and_words():
    again = search_round("country of Lyon thanks", ["9", "1"])
    assert signals(FOUND_1, again)[1] == (0.0, 0.0)
    other = search_round("country of Lyon thanks", ["9", "8"])
    assert signals(FOUND_1, other)[1] == (0.0, 1.0)
    failed = search_round("Lyon", ["9", "8"])
    assert signals(failed, search_round("country of Lyon", ["8", "9"]))[1] == (0.0, 1.0)


def entities_by_the_whole_text(text):
    """The rule as it is said, with all that stands before a word looked at."""
    found = set()
    for match in re.finditer(r"[^\W_]+(?:['’\-][^\W_]+)*", text):
        word, before = match.group(0), text[: match.start()]
        opens = not before or re.search(r"[.!?:;]\s*$", before)
        common = (opens or word == "I") and word.lower() in _OPENERS
        if not common and (word[0].isdigit() or word != word.lower()):
            found.add(_fold(word))
    return found


def test_a_sentence_is_opened_where_the_whole_text_before_says_so():
    rng = random.Random(0)
    parts = ["Maybe", "the", "The", "Kenya", "I", "1990", ".", "?", ":", ",", " ", "\n ", '"', "If"]
    for _ in range(2000):
        text = " ".join(rng.choices(parts, k=12)).strip()
        assert entities(text) == entities_by_the_whole_text(text), text


def test_a_very_long_text_is_read_word_by_word():
    """Looking back to its beginning at every word takes minutes."""
    text = "word Maybe " * 20_000 + ". The Kenya" * 20_000
    assert entities(text) == {"maybe", "kenya"}


def test_a_judge_that_errs_flips_as_often_as_it_says_and_always_the_same_ones():
    rounds = [search_round("country of Lyon", ["1"]) for _ in range(400)]
    played = trajectory(*rounds, search_round(answer="x"), group_id=3)
    right = [Verdict(utility=1.0, correctness=0.0)] * 399 + [None]
    flipped = flip_verdicts(played, right, 0.2)
    assert flipped == flip_verdicts(played, right, 0.2)
    assert flipped[-1] is None
    shares = [sum(v.utility == 0.0 for v in flipped[:-1]), sum(v.correctness for v in flipped[:-1])]
    assert all(50 < share < 110 for share in shares)  # 80 expected, 4 standard deviations
    assert flip_verdicts(played, right, 0.0) == tuple(right)
    assert all(v.utility == 0.0 for v in flip_verdicts(played, right, 1.0)[:-1])
