"""Cities of GeoNames: subjects with their facts, and places with similar names."""

from __future__ import annotations

from collections import Counter

from pipeline.tasks.builder import MAX_SUBJECT_CHARS, Builder
from pipeline.tasks.knowledge import Entity
from pipeline.tasks.sources import geonames
from pipeline.tasks.text import normalise, pick
from pipeline.tasks.values import Value, name_value, quantity_value

__all__ = ["add_cities"]

CITIES_PER_COUNTRY = 10
CITY_LOOKALIKES = 2000


def add_cities(builder: Builder) -> None:
    """Large cities with unique names become subjects; look-alike names become passages."""
    cities = [c for c in geonames.read_cities() if c.country_iso in builder.country_by_iso]
    names = Counter(normalise(city.name) for city in cities)
    builder.city_names = set(names)
    subjects = _subject_cities(builder, cities, names)
    for city in cities:  # own names before alternate ones: Delhi is also called New Delhi
        if city.geoname_id in subjects:
            country = builder.country_by_iso[city.country_iso]
            builder.cities[country, normalise(city.name)] = subjects[city.geoname_id]
    largest: set[str] = set()
    for city in cities:
        entity = subjects.get(city.geoname_id)
        country = builder.country_by_iso[city.country_iso]
        if city.country_iso not in largest:
            largest.add(city.country_iso)
            builder.state("largest_city", country, name_value(city.name), entity)
        if entity is None:
            continue
        builder.base.home[entity] = country
        for alias in city.alternate_names:
            builder.cities.setdefault((country, normalise(alias)), entity)
        location = Value(country.name)
        if names[normalise(city.name)] == 1:
            builder.state("city_country", entity, location, country)
        else:
            _locate(builder, city)
        builder.state("city_population", entity, quantity_value(city.population, ""))
        zone = city.timezone
        zone_aliases = (zone.replace("_", " "), zone.split("/")[-1].replace("_", " "))
        builder.state("city_timezone", entity, Value(zone, zone_aliases))
        _describe(builder, city)
    _add_city_lookalikes(builder, [c for c in cities if c.geoname_id not in subjects], names)


def _subject_cities(
    builder: Builder, cities: list[geonames.GeoCity], names: Counter[str]
) -> dict[int, Entity]:
    """Cities that questions may be about, by GeoNames id.

    A unique plain name, or the largest of its name where it is also the largest city or the
    capital of its country (such a city is a bridge, never the start of "which country").
    """
    countries = {normalise(entity.name) for entity in builder.country_by_iso.values()}
    taken: Counter[str] = Counter()
    seen: set[str] = set()
    subjects = {}
    for city in cities:
        key = normalise(city.name)
        first_of_its_name = key not in seen
        seen.add(key)
        fits = len(city.name) <= MAX_SUBJECT_CHARS and key not in countries and city.population > 0
        prominent = taken[city.country_iso] == 0 or city.name in builder.capitals[city.country_iso]
        if not fits or not first_of_its_name or not (prominent or names[key] == 1):
            continue
        if prominent or (city.name.isascii() and taken[city.country_iso] < CITIES_PER_COUNTRY):
            taken[city.country_iso] += 1
            subjects[city.geoname_id] = Entity("city", city.name)
    return subjects


def _add_city_lookalikes(
    builder: Builder, cities: list[geonames.GeoCity], names: Counter[str]
) -> None:
    """Places that share a name, or the beginning of a name, with a subject city."""
    stems = Counter(normalise(e.name)[:5] for e in builder.base.entities("city"))
    added = 0
    for city in cities:
        key = normalise(city.name)
        if not city.name.isascii() or not (names[key] > 1 or stems[key[:5]] > 0):
            continue
        if names[key] > 1:
            names[key] -= 1  # every namesake but the last one, which is the smallest
        stems[key[:5]] -= 1
        _locate(builder, city)
        added += 1
        if added == CITY_LOOKALIKES:
            return


def _describe(builder: Builder, city: geonames.GeoCity) -> None:
    """A passage about a subject city that answers nothing that is asked."""
    others = [name for name in city.alternate_names if name.isascii() and name != city.name]
    if others:
        names = ", ".join(others[:2])
        builder.base.add_document(city.name, f"{city.name} is a city also known as {names}.")


def _locate(builder: Builder, city: geonames.GeoCity) -> None:
    country = builder.country_by_iso[city.country_iso]
    rule = builder.relations["city_country"]
    sentence = pick(list(rule.passage), f"{city.geoname_id}")
    builder.base.add_document(city.name, sentence.format(s=city.name, o=country.name))
