"""The environment of the pages about judges: escaped, strict, with the report's number formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.judging.untrusted import visible_text
from pipeline.report.page import format_number, format_seconds, format_share, format_signed

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["TEMPLATES", "page_environment"]

TEMPLATES = Path(__file__).parent / "templates"


def page_environment() -> Environment:
    """Everything that a template prints is escaped unless it is marked as HTML; ``visible`` also
    shows characters that cannot be seen. A name that does not exist is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=format_share,
        number=format_number,
        signed=format_signed,
        duration=format_seconds,
        count=lambda n: f"{n:,}",
        visible=visible_text,
    )
    return environment
