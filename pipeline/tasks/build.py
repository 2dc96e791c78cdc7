"""Builds the knowledge base and its passages from the three sources."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from pipeline.tasks.knowledge import Entity, Fact, KnowledgeBase
from pipeline.tasks.relations import Relations
from pipeline.tasks.sources import factbook, geonames, wikipedia
from pipeline.tasks.text import cut, fold, normalise, pick
from pipeline.tasks.values import Value, name_value, quantity_value, read_value

__all__ = ["build_knowledge"]

MAX_SUBJECT_CHARS = 22
CITIES_PER_COUNTRY = 12
LEAD_WORDS = 40
CITY_LOOKALIKES = 2500
LOOKALIKE_CHARS = 120

_COUNTRY_ALIASES = {
    "United States": ("USA", "US", "U.S.", "America", "the States"),
    "United Kingdom": ("UK", "U.K.", "Britain", "Great Britain"),
    "United Arab Emirates": ("UAE",),
    "DRC": ("Democratic Republic of the Congo", "Congo-Kinshasa"),
    "Turkey (Turkiye)": ("Turkey", "Türkiye"),
}


class _Builder:
    """Collects passages and facts; one method a source."""

    def __init__(self, relations: Relations) -> None:
        self.relations = relations
        self.base = KnowledgeBase()
        self.country_by_iso: dict[str, Entity] = {}
        self.country_by_name: dict[str, Entity] = {}
        self.capitals: dict[str, tuple[str, ...]] = {}  # ISO code to names of the capital
        self.cities: dict[tuple[Entity, str], Entity] = {}
        self.lookalikes_left = CITY_LOOKALIKES

    def state(
        self, relation: str, subject: Entity, value: Value, bridge: Entity | None = None
    ) -> None:
        """Write a passage that states a fact, and store the fact."""
        rule = self.relations[relation]
        sentence = pick(list(rule.passage), f"{relation}|{subject.name}")
        text = sentence.format(s=subject.name, o=value.text)
        evidence = self.base.add_document(subject.name, text[0].upper() + text[1:])
        self.know(relation, subject, value, evidence, bridge)

    def know(
        self,
        relation: str,
        subject: Entity,
        value: Value,
        evidence: int,
        bridge: Entity | None = None,
    ) -> None:
        """Store a fact that an existing passage states."""
        if len(subject.name) > MAX_SUBJECT_CHARS:
            return
        aliases = (*value.aliases, *(self.base.aliases.get(bridge, ()) if bridge else ()))
        aliases = tuple(a for a in dict.fromkeys(aliases) if a != value.text)
        self.base.add_fact(Fact(relation, subject, value.text, aliases, evidence, bridge))

    def spend_lookalike(self) -> int:
        """Count one look-alike city; what is left of the budget."""
        self.lookalikes_left -= 1
        return self.lookalikes_left

    def country(self, name: str) -> Entity | None:
        """The country of that name or alias."""
        return self.country_by_name.get(normalise(re.sub(r"^the ", "", name, flags=re.I)))


def build_knowledge(relations: Relations) -> KnowledgeBase:
    """Read the sources and return facts and passages, in a fixed order.

    Raises UserError when a source package is missing.
    """
    builder = _Builder(relations)
    countries = _register_countries(builder)
    _add_cities(builder)
    _add_country_facts(builder, countries)
    _add_lookalike_fields(builder, countries)
    _add_leads(builder)
    builder.base.drop_ambiguous()
    return builder.base


def _register_countries(builder: _Builder) -> list[tuple[Entity, factbook.FactbookCountry]]:
    """Match factbook countries with GeoNames ones by name, else by internet code."""
    geo = geonames.read_countries()
    by_name = {normalise(country.name): country for country in geo}
    by_code = {country.internet_code: country for country in geo}
    found = []
    for country in factbook.read_countries():
        code = country.field(("Communications", "Internet country code"))[:3]
        match = by_name.get(normalise(country.name)) or by_code.get(code)
        if not match or match.iso in builder.country_by_iso:
            continue
        name = re.sub(r"\s*\([^)]*\)", "", country.name)
        entity = Entity("country", match.name if len(match.name) <= MAX_SUBJECT_CHARS else name)
        builder.country_by_iso[match.iso] = entity
        aliases = {match.name, country.name, name, country.long_name, fold(entity.name)}
        aliases |= set(_COUNTRY_ALIASES.get(match.name, ()))
        builder.base.aliases[entity] = tuple(sorted(a for a in aliases if a and a != entity.name))
        for alias in (entity.name, *builder.base.aliases[entity]):
            builder.country_by_name.setdefault(normalise(re.sub(r"^[Tt]he ", "", alias)), entity)
        capital = read_value("name", country.field(("Government", "Capital", "name")))
        builder.capitals[match.iso] = (capital.text, *capital.aliases) if capital else ()
        found.append((entity, country))
        if match.currency:
            builder.state("currency", entity, name_value(match.currency))
            builder.state("currency_code", entity, Value(match.currency_code))
        if match.calling_code and len(match.calling_code) < 5:
            builder.state("calling_code", entity, Value(f"+{match.calling_code}", (match.calling_code,)))
    return found


def _add_cities(builder: _Builder) -> None:
    """Large cities with unique names become subjects; look-alike names become passages."""
    cities = [c for c in geonames.read_cities() if c.country_iso in builder.country_by_iso]
    names = Counter(normalise(city.name) for city in cities)
    subjects = _subject_cities(builder, cities, names)
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
        for alias in (city.name, *city.alternate_names):
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
    _add_city_lookalikes(builder, [c for c in cities if c.geoname_id not in subjects], names)


def _subject_cities(
    builder: _Builder, cities: list[geonames.GeoCity], names: Counter[str]
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
    builder: _Builder, cities: list[geonames.GeoCity], names: Counter[str]
) -> None:
    """Places that share a name, or the beginning of a name, with a subject city."""
    stems = Counter(normalise(e.name)[:5] for e in builder.base.entities("city"))
    for city in cities:
        key = normalise(city.name)
        if not city.name.isascii() or not (names[key] > 1 or stems[key[:5]] > 0):
            continue
        if names[key] > 1:
            names[key] -= 1  # every namesake but the last one, which is the smallest
        stems[key[:5]] -= 1
        _locate(builder, city)
        if builder.spend_lookalike() <= 0:
            return


def _locate(builder: _Builder, city: geonames.GeoCity) -> None:
    country = builder.country_by_iso[city.country_iso]
    rule = builder.relations["city_country"]
    sentence = pick(list(rule.passage), f"{city.geoname_id}")
    builder.base.add_document(city.name, sentence.format(s=city.name, o=country.name))


def _add_country_facts(
    builder: _Builder, countries: list[tuple[Entity, factbook.FactbookCountry]]
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
            builder.state(rule.name, entity, value, bridge)
        _add_borders(builder, entity, country.field(("Geography", "Land boundaries", "border countries")))


def _add_borders(builder: _Builder, entity: Entity, text: str) -> None:
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


def _add_lookalike_fields(
    builder: _Builder, countries: list[tuple[Entity, factbook.FactbookCountry]]
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
                body = text if len(text) <= LOOKALIKE_CHARS else cut(text, 25)
                builder.base.add_document(
                    entity.name, rules.passage.format(label=label, s=entity.name, o=body)
                )


def _label(parts: tuple[str, ...]) -> str:
    """``("Exports", "Exports 2022")`` -> ``"Exports 2022"``."""
    shown = [p for i, p in enumerate(parts) if not any(p in later for later in parts[i + 1 :])]
    label = ", ".join(shown)
    return label[0].upper() + label[1:]


_YEARS = re.compile(r"\((\d{3,4})[–-](\d{3,4})\)|\(born (?:[A-Z][a-z]+ )?(?:\d+, )?(\d{4})\)")
_PLACE = re.compile(
    r"^(?:[A-Z]?[\w-]+ ){0,3}?(?:[Mm]ountain|[Rr]iver|[Ll]ake|[Ii]sland|[Vv]olcano|[Dd]esert|[Tt]emple|"
    r"[Pp]alace|[Cc]astle|[Uu]niversity|[Mm]useum|[Ss]tate|[Pp]rovince|[Rr]egion|[Ww]aterfall|"
    r"[Ss]ite|[Pp]ark|[Bb]ridge|[Cc]athedral|[Mm]osque|[Tt]ower|[Ff]ortress|[Mm]onument|[Cc]hurch|"
    r"[Mm]ountain range|[Pp]eninsula|[Cc]anal|[Cc]ity|[Mm]unicipality|[Tt]own|[Pp]ort|[Mm]ausoleum|"
    r"[Vv]alley|[Pp]lateau|[Aa]rchipelago|[Bb]uilding|[Ss]tadium|[Pp]refecture|[Dd]am)\b(?! (?:by|on)).*?"
    r"\b(?:in|of)(?: [a-z-]+)? (?:the )?(?:[^,]+, )*(?:the )?([A-Z][\w '\-]+)$"
)
_WORK = re.compile(
    r"^(?:(?P<year>1\d{3}|20\d\d) )?(?:[\w'-]+ ){0,4}?(?:film|novel|painting|opera|play|book|album|series|"
    r"poem|symphony|ballet|sculpture|novella|epic|musical|treatise|tragedy|comedy|work|story|song|single|"
    r"concerto|essay|fresco|novels|poems|stories|operas|cantata|oratorio|suite|etching|print|statue|"
    r"autobiography|memoir|pamphlet|collection|concertos|satire|dialogue)\b.*? by (?:the )?"
    r"(?:[A-Z]?[a-z]+ )*?(?P<person>[A-Z][\w.'\-]+(?: (?:de|van|von|da|del|la|le|di|der|den|of|[A-Z][\w.'\-]*))*)"
    r"(?:, .*| \(.*| in \d.*| around \d.*)?$"
)


def _add_leads(builder: _Builder) -> None:
    """One passage a Wikipedia lead; facts from the short descriptions."""
    leads = wikipedia.read_leads()
    people = _people(leads)
    counts = Counter(normalise(lead.name) for lead in leads)
    for lead in leads:
        years = _YEARS.search(lead.description) if lead.topic == "People" else None
        description = _YEARS.sub("", lead.description).strip() if years else lead.description
        body = f"{description}. {lead.extract}" if description else lead.extract
        document = builder.base.add_document(lead.title, cut(body, LEAD_WORDS))
        if counts[normalise(lead.name)] > 1:
            continue
        if years:
            person = Entity("person", lead.name)
            born, died = years.group(1) or years.group(3), years.group(2)
            builder.state("birth_year", person, Value(born))
            if died:
                builder.state("death_year", person, Value(died))
        elif lead.topic != "People":
            _add_place(builder, lead, document)
            _add_work(builder, lead, document, people)


def _people(leads: list[wikipedia.Lead]) -> dict[str, str]:
    """Full and family names of people who are named by one lead only."""
    names: dict[str, set[str]] = defaultdict(set)
    for lead in leads:
        if lead.topic == "People":
            for key in {normalise(lead.name), normalise(lead.name).split(" ")[-1]}:
                names[key].add(lead.name)
    return {key: next(iter(found)) for key, found in names.items() if len(found) == 1}


def _add_place(builder: _Builder, lead: wikipedia.Lead, document: int) -> None:
    match = _PLACE.match(lead.description)
    country = builder.country(match.group(1)) if match else None
    if country and builder.country(lead.name) is None and country.name in lead.description:
        place = Entity("place", lead.name)
        builder.base.home[place] = country
        builder.know("place_country", place, Value(country.name), document, country)


def _add_work(
    builder: _Builder, lead: wikipedia.Lead, document: int, people: dict[str, str]
) -> None:
    match = _WORK.match(lead.description)
    if not match:
        return
    work = Entity("work", lead.name)
    written = match.group("person")
    full = people.get(normalise(written), written)
    bridge = Entity("person", full) if normalise(written) in people else None
    family = written.split(" ")[-1]
    value = name_value(written, full, family)
    builder.know("creator", work, value, document, bridge)
    if match.group("year"):
        builder.know("work_year", work, Value(match.group("year")), document)
