"""Builds the knowledge base and its passages from the three sources."""

from __future__ import annotations

from pipeline.tasks.builder import Builder
from pipeline.tasks.cities import add_cities
from pipeline.tasks.countries import add_country_facts, add_lookalike_fields, register_countries
from pipeline.tasks.knowledge import KnowledgeBase
from pipeline.tasks.leads import add_leads
from pipeline.tasks.relations import Relations

__all__ = ["build_knowledge"]


def build_knowledge(relations: Relations) -> KnowledgeBase:
    """Read the sources and return facts and passages, in a fixed order.

    Raises UserError when a source package is missing.
    """
    builder = Builder(relations)
    countries = register_countries(builder)
    add_cities(builder)
    add_country_facts(builder, countries)
    add_lookalike_fields(builder, countries)
    add_leads(builder)
    builder.base.drop_ambiguous()
    return builder.base
