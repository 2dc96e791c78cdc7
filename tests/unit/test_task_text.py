"""Cleaning, folding and cutting of source text."""

from __future__ import annotations

from pipeline.tasks.text import clean, cut, fold, normalise, pick


def test_tags_and_entities_are_resolved() -> None:
    assert clean("R&eacute;publique <em>fran&ccedil;aise</em>\n x") == "République française x"


def test_folding_takes_away_marks_and_special_letters() -> None:
    assert fold("Łódź, Tromsø, Chișinău") == "Lodz, Tromso, Chisinau"


def test_names_that_differ_in_case_and_marks_alone_are_the_same() -> None:
    assert normalise("Saint-Étienne") == normalise("SAINT ETIENNE")


def test_a_cut_ends_at_a_sentence_when_there_is_one() -> None:
    text = "First things come first. Then comes a second sentence that is long. Third."
    assert cut(text, 8) == "First things come first."


def test_an_abbreviation_does_not_end_a_sentence() -> None:
    assert cut("Poem by T. S. Eliot and friends, widely read everywhere today", 8) == (
        "Poem by T. S. Eliot and friends ..."
    )


def test_a_short_text_is_left_alone() -> None:
    assert cut("Two words", 2) == "Two words"


def test_the_same_key_picks_the_same_wording_and_keys_differ() -> None:
    options = ["a", "b"]
    assert pick(options, "capital|Kenya") == pick(options, "capital|Kenya")
    assert {pick(options, str(n)) for n in range(20)} == {"a", "b"}
