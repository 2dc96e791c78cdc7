"""Wikipedia leads: one passage each, and facts about people, places and works."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from pipeline.tasks.builder import Builder
from pipeline.tasks.knowledge import Entity
from pipeline.tasks.sources import wikipedia
from pipeline.tasks.text import cut, normalise
from pipeline.tasks.values import Value, name_value

__all__ = ["add_leads"]

LEAD_WORDS = 24

_PLACES = """
mountain river lake island volcano desert temple palace castle university museum state province
region waterfall site park bridge cathedral mosque tower fortress monument church peninsula canal
city municipality town port mausoleum valley plateau archipelago building stadium prefecture dam
"""
_WORKS = """
film novel painting opera play book album series poem symphony ballet sculpture novella epic
musical treatise tragedy comedy work story song single concerto essay fresco novels poems stories
operas cantata oratorio suite etching print statue autobiography memoir pamphlet collection
concertos satire dialogue
"""


def _any_of(words: str) -> str:
    return "|".join(words.split())


# "Italian chemist (1745–1827)", "American actress (born 1949)"
_YEARS = re.compile(r"\((\d{3,4})[–-](\d{3,4})\)|\(born (?:[A-Z][a-z]+ )?(?:\d+, )?(\d{4})\)")
# "Island in Pará, Brazil", "State in northwestern India", "Capital and largest city of Mali"
_PLACE = re.compile(
    rf"^(?:[A-Z]?[\w-]+ ){{0,3}}?(?i:{_any_of(_PLACES)})\b(?! (?:by|on)).*?"
    r"\b(?:in|of)(?: [a-z-]+)? (?:the )?(?:[^,]+, )*(?:the )?([A-Z][\w '\-]+)$"
)
# "1965 science fiction novel by Frank Herbert", "Book by Ibn Khaldun, written in 1377"
_WORK = re.compile(
    rf"^(?:(?P<year>1\d{{3}}|20\d\d) )?(?:[\w'-]+ ){{0,4}}?(?:{_any_of(_WORKS)})\b.*? by (?:the )?"
    r"(?:[A-Z]?[a-z]+ )*?(?P<person>[A-Z][\w.'\-]+"
    r"(?: (?:de|van|von|da|del|la|le|di|der|den|of|[A-Z][\w.'\-]*))*)"
    r"(?:, .*| \(.*| in \d.*| around \d.*)?$"
)


def add_leads(builder: Builder) -> None:
    """One passage a Wikipedia lead; facts from the short descriptions."""
    leads = wikipedia.read_leads()
    people = _people(leads)
    counts = Counter(normalise(lead.name) for lead in leads)
    for lead in leads:
        years = _YEARS.search(lead.description) if lead.topic == "People" else None
        description = _YEARS.sub("", lead.description).strip() if years else lead.description
        body = f"{description}. {lead.extract}" if description else lead.extract
        text = cut(body, LEAD_WORDS)
        builder.base.add_document(lead.title, text)
        if counts[normalise(lead.name)] > 1:
            continue
        if years:
            person = Entity("person", lead.name)
            born, died = years.group(1) or years.group(3), years.group(2)
            builder.base.add_document(lead.title, f"{lead.name}: {description}.")
            builder.state("birth_year", person, Value(born))
            if died:
                builder.state("death_year", person, Value(died))
        elif lead.topic != "People":
            if lead.topic != "History":
                _add_place(builder, lead)
            _add_work(builder, lead, text, people)


def _people(leads: list[wikipedia.Lead]) -> dict[str, str]:
    """Full and family names of people who are named by one lead only."""
    names: dict[str, set[str]] = defaultdict(set)
    for lead in leads:
        if lead.topic == "People":
            for key in {normalise(lead.name), normalise(lead.name).split(" ")[-1]}:
                names[key].add(lead.name)
    return {key: next(iter(found)) for key, found in names.items() if len(found) == 1}


def _add_place(builder: Builder, lead: wikipedia.Lead) -> None:
    match = _PLACE.match(lead.description)
    country = builder.country(match.group(1)) if match else None
    taken = builder.country(lead.name) or normalise(lead.name) in builder.city_names
    if country and not taken and "," not in lead.name and country.name in lead.description:
        place = Entity("place", lead.name)
        builder.base.home[place] = country
        builder.state("place_country", place, Value(country.name), country)


def _add_work(builder: Builder, lead: wikipedia.Lead, text: str, people: dict[str, str]) -> None:
    match = _WORK.match(lead.description)
    if not match:
        return
    work = Entity("work", lead.name)
    written = match.group("person")
    full = people.get(normalise(written), written)
    if full in text:  # else the lead does not say who it is
        bridge = Entity("person", full) if normalise(written) in people else None
        value = name_value(full, written, written.split(" ")[-1])
        builder.state("creator", work, value, bridge)
    if match.group("year"):
        builder.state("work_year", work, Value(match.group("year")))
