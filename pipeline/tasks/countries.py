"""Countries: facts of the factbook and GeoNames, and look-alike passages beside them."""

from __future__ import annotations

import re

from pipeline.tasks.builder import MAX_SUBJECT_CHARS, Builder
from pipeline.tasks.knowledge import Entity
from pipeline.tasks.sources import factbook, geonames
from pipeline.tasks.text import cut, fold, normalise
from pipeline.tasks.values import Value, name_value, read_value

__all__ = ["add_country_facts", "add_lookalike_fields", "register_countries"]

LOOKALIKE_CHARS = 80  # a longer text is cut to LOOKALIKE_WORDS
LOOKALIKE_WORDS = 14

_BORDERS = ("Geography", "Land boundaries", "border countries")
_UNINHABITED = {"AQ", "BV", "GS", "HM", "TF", "UM"}
_COUNTRY_ALIASES = {
    "United States": ("USA", "US", "U.S.", "America", "the States"),
    "United Kingdom": ("UK", "U.K.", "Britain", "Great Britain"),
    "United Arab Emirates": ("UAE",),
    "DRC": ("Democratic Republic of the Congo", "Congo-Kinshasa"),
    "Turkey (Turkiye)": ("Turkey", "Türkiye"),
}


def register_countries(builder: Builder) -> list[tuple[Entity, factbook.FactbookCountry]]:
    """Match factbook countries with GeoNames ones by name, else by internet code."""
    geo = geonames.read_countries()
    by_name = {normalise(country.name): country for country in geo}
    by_code = {country.internet_code: country for country in geo}
    found = []
    for country in factbook.read_countries():
        code = country.field(("Communications", "Internet country code"))[:3]
        match = by_name.get(normalise(country.name)) or by_code.get(code)
        if not match or match.iso in builder.country_by_iso or match.iso in _UNINHABITED:
            continue
        name = re.sub(r"\s*\([^)]*\)", "", country.name)
        entity = Entity("country", match.name if len(match.name) <= MAX_SUBJECT_CHARS else name)
        builder.country_by_iso[match.iso] = entity
        aliases = {match.name, country.name, name, country.long_name, fold(entity.name)}
        aliases |= set(_COUNTRY_ALIASES.get(match.name, ()))
        builder.base.aliases[entity] = tuple(sorted(a for a in aliases if a and a != entity.name))
        for alias in (entity.name, *builder.base.aliases[entity]):
            builder.country_by_name.setdefault(normalise(re.sub(r"^[Tt]he ", "", alias)), entity)
        capital = read_value("capital", country.field(("Government", "Capital", "name")))
        builder.capitals[match.iso] = (capital.text, *capital.aliases) if capital else ()
        found.append((entity, country))
        if match.currency:
            builder.state("currency", entity, name_value(match.currency))
            builder.state("currency_code", entity, Value(match.currency_code))
        if match.calling_code and len(match.calling_code) < 5:
            builder.state(
                "calling_code", entity, Value(f"+{match.calling_code}", (match.calling_code,))
            )
    return found


def add_country_facts(
    builder: Builder, countries: list[tuple[Entity, factbook.FactbookCountry]]
) -> None:
    for entity, country in countries:
        for rule in builder.relations.by_name.values():
            if not rule.field:
                continue
            value = read_value(rule.value, country.field(rule.field), rule.unit)
            if value is None:
                continue
            bridge = None
            if rule.object == "country":
                bridge = builder.country(value.text)
                value = Value(bridge.name) if bridge else value
            elif rule.object == "city":
                bridge = builder.cities.get((entity, normalise(value.text)))
                if bridge:  # one spelling in all passages
                    value = name_value(bridge.name, value.text, *value.aliases)
            builder.state(rule.name, entity, value, bridge)
        _add_borders(
            builder, entity, country.field(("Geography", "Land boundaries", "border countries"))
        )


def _add_borders(builder: Builder, entity: Entity, text: str) -> None:
    """Longest and shortest border, only where there are two neighbours of distinct lengths."""
    borders = []
    for name, length in re.findall(r"([A-Z][^;\d]*?)\s+([\d,]+(?:\.\d+)?)\s*km", text):
        neighbour = builder.country(re.sub(r"\s*\([^)]*\)", "", name).strip(" ,"))
        if neighbour is None:
            return
        borders.append((float(length.replace(",", "")), neighbour))
    borders.sort(key=lambda border: border[0])
    if len(borders) < 2 or borders[0][0] == borders[1][0] or borders[-1][0] == borders[-2][0]:
        return
    for relation, (_, neighbour) in (
        ("longest_border", borders[-1]),
        ("shortest_border", borders[0]),
    ):
        builder.state(relation, entity, Value(neighbour.name), neighbour)


def add_lookalike_fields(
    builder: Builder, countries: list[tuple[Entity, factbook.FactbookCountry]]
) -> None:
    """Neighbouring measures, other years, other sexes: passages nobody asks about."""
    rules = builder.relations.lookalikes
    asked = {rule.field for rule in builder.relations.by_name.values() if rule.field}
    for entity, country in countries:
        for path in rules.fields:
            for leaf, text in country.leaves(path):
                key = tuple(part.strip() for part in leaf)
                if key in asked or not text or text.lower().startswith(("none", "na ")):
                    continue
                label = _label(leaf[1:])
                body = text if len(text) <= LOOKALIKE_CHARS else cut(text, LOOKALIKE_WORDS)
                builder.base.add_document(
                    entity.name, rules.passage.format(label=label, s=entity.name, o=body)
                )


def _label(parts: tuple[str, ...]) -> str:
    """``("Exports", "Exports 2022")`` -> ``"Exports 2022"``."""
    shown = [p for i, p in enumerate(parts) if not any(p in later for later in parts[i + 1 :])]
    label = ", ".join(shown)
    return label[0].upper() + label[1:]
