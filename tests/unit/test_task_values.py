"""Factbook fields become short answers with aliases, or nothing."""

from __future__ import annotations

import pytest

from pipeline.tasks.values import MAX_ANSWER_CHARS, name_value, quantity_value, read_value


@pytest.mark.parametrize(
    ("text", "unit", "answer"),
    [
        ("580,367 sq km", "sq km", "580,000 sq km"),
        ("55,751,717 (2025 est.)", "", "56 million"),
        ("1.44 billion", "", "1.4 billion"),
        ("536 km", "km", "536 km"),
        ("21.5 years (2025 est.)", "years", "21.5 years"),
        ("3,819 km (2018)", "km", "3,800 km"),
    ],
)
def test_a_figure_is_rounded_so_that_it_can_be_copied(text: str, unit: str, answer: str) -> None:
    value = read_value("quantity", text, unit)
    assert value is not None
    assert value.text == answer


def test_a_figure_is_accepted_with_and_without_separator_and_unit() -> None:
    aliases = quantity_value(580_367, "sq km").aliases
    for alias in ("580,000", "580000", "580000 sq km", "580,000 square kilometres", "580,000 km2"):
        assert alias in aliases
    assert {"56000000", "56,000,000", "56 million people"} <= set(
        quantity_value(5.58e7, "").aliases
    )


def test_money_and_shares_have_their_usual_spellings() -> None:
    money = read_value("money", "$12.626 billion (2023 est.)")
    share = read_value("percent", "29.5% of total population (2023)")
    assert money is not None and share is not None
    assert money.text == "$13 billion"
    assert "13 billion dollars" in money.aliases
    assert share.text == "29.5%"
    assert {"29.5", "29.5 percent"} <= set(share.aliases)


def test_a_name_is_accepted_without_diacritics() -> None:
    assert name_value("São Tomé").aliases == ("Sao Tome",)
    assert name_value("Nairobi").aliases == ()


def test_an_officer_is_written_as_people_write_names() -> None:
    value = read_value("officer", "President Luiz Inácio LULA da Silva (since 1 January 2023)")
    assert value is not None
    assert value.text == "Luiz Inácio Lula da Silva"
    assert {"Lula", "Luiz Inacio Lula da Silva"} <= set(value.aliases)


def test_a_remark_in_brackets_is_no_alias_but_another_name_is() -> None:
    symbol = read_value("name", "Sun of May (a sun-with-face symbol)")
    nationality = read_value("name", "Taiwan (or Taiwanese)")
    summit = read_value("summit", "Loma Mansa (Bintimani) 1,948 m")
    assert symbol is not None and nationality is not None and summit is not None
    assert symbol.aliases == ()
    assert nationality.aliases == ("Taiwanese",)
    assert (summit.text, summit.aliases) == ("Loma Mansa", ("Bintimani",))


def test_a_country_with_several_capitals_has_no_capital_fact() -> None:
    text = "La Paz (administrative capital); Sucre (constitutional capital)"
    assert read_value("capital", text) is None
    only = read_value("capital", "Chisinau in Romanian (Kishinev in Russian)")
    assert only is not None
    assert only.text == "Chisinau"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("quantity", "none"),
        ("quantity", "0 km"),
        ("quantity", "less than one"),
        ("money", "12 billion"),
        ("summit", "unnamed elevation 13 m"),
        ("first", "phosphates 62%"),
        ("title", '"God Save the King"'),
        ("name", "x" * (MAX_ANSWER_CHARS + 1)),
        ("name", ""),
    ],
)
def test_what_cannot_be_read_with_confidence_is_left_out(kind: str, text: str) -> None:
    assert read_value(kind, text, "km") is None
