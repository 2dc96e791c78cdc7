"""What all pages are made with: templates that escape and miss no name, and how numbers are
written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.judging.untrusted import visible_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["TEMPLATES", "page_environment"]

TEMPLATES = Path(__file__).parent / "templates"
_NOT_MEASURED = "–"
_NBSP = "\u00a0"


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
        points=format_points,
        amount=format_amount,
        number=format_number,
        signed=format_signed,
        duration=format_seconds,
        count=lambda n: f"{n:,}",
        visible=visible_text,
    )
    return environment


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def format_share(value: float | None, decimals: int = 1) -> str:
    """
    >>> format_share(0.3456), format_share(None)
    ('34.6\\xa0%', '–')
    """
    return (
        _NOT_MEASURED if value is None or _missing(value) else f"{100 * value:.{decimals}f}{_NBSP}%"
    )


def format_points(value: float | None) -> str:
    """A difference of shares, in points, with its sign (a true minus).

    >>> format_points(0.256), format_points(-0.1)
    ('+25.6', '−10.0')
    """
    return _NOT_MEASURED if value is None or _missing(value) else _sign(f"{100 * value:+.1f}")


def format_number(value: float | None, decimals: int = 2) -> str:
    """
    >>> format_number(2.0), format_number(float("nan"))
    ('2.00', '–')
    """
    return _NOT_MEASURED if value is None or _missing(value) else _sign(f"{value:.{decimals}f}")


def format_amount(value: float | None) -> str:
    """Any size, with about three digits that say something; larger ones whole.

    >>> format_amount(1234567.0), format_amount(4.0), format_amount(4.125), format_amount(0.0000312)
    ('1,234,567', '4', '4.12', '0.0000312')
    """
    if value is None or _missing(value):
        return _NOT_MEASURED
    if value == round(value) or abs(value) >= 100:
        return _sign(f"{value:,.0f}")
    return _sign(f"{value:.{max(2, 2 - math.floor(math.log10(abs(value))))}f}")


def format_signed(value: float | None, decimals: int = 2) -> str:
    """
    >>> format_signed(0.5), format_signed(-0.5), format_signed(0.0)
    ('+0.50', '−0.50', '0.00')
    """
    if value is None or _missing(value):
        return _NOT_MEASURED
    text = f"{value:+.{decimals}f}"
    return _sign(text) if float(text) else f"{0:.{decimals}f}"


def format_seconds(seconds: float | None) -> str:
    """
    >>> format_seconds(7.24), format_seconds(75)
    ('7.2 s', '1 min 15 s')
    """
    from pipeline.progress import format_duration

    return _NOT_MEASURED if seconds is None or _missing(seconds) else format_duration(seconds)


def _sign(text: str) -> str:
    return text.replace("-", "−")
