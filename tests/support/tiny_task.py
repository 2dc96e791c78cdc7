"""A task of 24 made-up countries in the field's file formats: corpus, train, dev and test."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FIRST = ("Ald", "Bor", "Cel", "Dor", "Eld", "Fal")
_LAST = ("avia", "onia", "ustan", "emark")
_CURRENCIES = ("crown", "florin", "ducat", "thaler")


def make_tiny_task(directory: Path) -> Path:
    """Write ``corpus.jsonl`` (72 passages) and three question files; returns ``directory``.

    A country has its capital, its currency and the country it borders in three passages. Half
    the questions have one hop (capital), half two (currency of the neighbour). The countries
    are split: no country of one file is the subject of a question of another.
    """
    directory.mkdir(parents=True, exist_ok=True)
    countries = [first + last for first in _FIRST for last in _LAST]
    _write(directory / "corpus.jsonl", _passages(countries))
    size = len(countries) // 3
    for part, split in enumerate(("train", "dev", "test")):
        subjects = range(part * size, (part + 1) * size)
        _write(directory / f"{split}.jsonl", _questions(countries, subjects, split))
    return directory


def _capital(country: str) -> str:
    return f"{country[:4]}ville"


def _currency(index: int) -> str:
    return _CURRENCIES[index % len(_CURRENCIES)]


def _passages(countries: list[str]) -> Iterable[dict[str, Any]]:
    for index, country in enumerate(countries):
        neighbour = countries[(index + 1) % len(countries)]
        facts = (
            f"The capital of {country} is {_capital(country)}.",
            f"The currency of {country} is the {_currency(index)}.",
            f"{country} shares its only border with {neighbour}.",
        )
        for offset, fact in enumerate(facts):
            yield {"id": str(3 * index + offset), "contents": f'"{country}"\n{fact}'}


def _questions(
    countries: list[str], subjects: Iterable[int], split: str
) -> Iterable[dict[str, Any]]:
    for number, index in enumerate(subjects):
        country = countries[index]
        following = (index + 1) % len(countries)
        if number % 2 == 0:
            question = f"What is the capital of {country}?"
            hops = [("capital", country, _capital(country), str(3 * index))]
        else:
            question = f"What is the currency of the country that borders {country}?"
            hops = [
                ("border", country, countries[following], str(3 * index + 2)),
                ("currency", countries[following], _currency(following), str(3 * following + 1)),
            ]
        plan = [
            {
                "relation": relation,
                "subject": subject,
                "answer": answer,
                "evidence": evidence,
                "query": f"{relation} of {subject}",
            }
            for relation, subject, answer, evidence in hops
        ]
        yield {
            "id": f"{split}-{number:06d}",
            "question": question,
            "golden_answers": [hops[-1][2]],
            "metadata": {
                "evidence": [hop[3] for hop in hops],
                "hops": len(hops),
                "type": hops[-1][0],
                "plan": plan,
            },
        }


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
