"""The default task on disk: makes corpus, questions and manifest, or finds them up to date."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline.atomic import sha256_of, write_json, write_lines
from pipeline.errors import UserError
from pipeline.tasks.build import build_knowledge
from pipeline.tasks.files import write_questions
from pipeline.tasks.knowledge import Document, KnowledgeBase
from pipeline.tasks.questions import generate_questions
from pipeline.tasks.relations import load_relations
from pipeline.tasks.sources import factbook, geonames, wikipedia
from pipeline.tasks.splits import assign_splits
from pipeline.types import Question

__all__ = ["TaskFiles", "TaskSize", "corpus_line", "generate_task", "task_is_current"]

_PACKAGES = (wikipedia.PACKAGE, factbook.PACKAGE, geonames.PACKAGE)


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """Where the files of a task lie."""

    corpus: Path
    train: Path
    dev: Path
    test: Path
    manifest: Path

    def data(self) -> dict[str, Path]:
        """The files a manifest vouches for, by role."""
        return {"corpus": self.corpus, "train": self.train, "dev": self.dev, "test": self.test}


@dataclass(frozen=True, slots=True)
class TaskSize:
    """Questions a split, and the seed of splits and questions."""

    train: int
    dev: int
    test: int
    seed: int


def corpus_line(number: int, document: Document) -> str:
    r"""One line of the corpus file.

    >>> corpus_line(0, Document("Paris", "Paris is the capital city of France."))
    '{"id": "0", "contents": "\\"Paris\\"\\nParis is the capital city of France."}'
    """
    contents = f'"{document.title}"\n{document.text}'
    return json.dumps({"id": str(number), "contents": contents}, ensure_ascii=False)


def task_is_current(files: TaskFiles, size: TaskSize) -> bool:
    """Whether the files are there, whole, and what this code would make from these sources."""
    try:
        manifest = json.loads(files.manifest.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    wanted = _inputs(size)
    if any(manifest.get(key) != value for key, value in wanted.items()):
        return False
    checksums = manifest.get("sha256", {})
    return all(
        path.is_file() and sha256_of(path) == checksums.get(role)
        for role, path in files.data().items()
    )


def generate_task(files: TaskFiles, size: TaskSize) -> dict[str, Any]:
    """Make all files of the task, the manifest last, and return the manifest.

    The same seed, sources and code give the same bytes. Raises UserError when a source package
    is missing or the task is asked for more questions than its entities carry.
    """
    relations = load_relations()
    base = build_knowledge(relations)
    split_of = assign_splits(base, size.seed)
    counts = {"train": size.train, "dev": size.dev, "test": size.test}
    questions: dict[str, list[Question]] = {}
    for split, count in counts.items():
        try:
            questions[split] = generate_questions(
                base, relations, split_of, split, count, size.seed
            )
        except ValueError as error:
            raise UserError(f"{error}. Remedy: a smaller task.num_{split}") from error
    files.manifest.unlink(missing_ok=True)
    write_lines(files.corpus, map(corpus_line, range(len(base.documents)), base.documents))
    for split, rows in questions.items():
        write_questions(files.data()[split], rows)
    manifest = _manifest(files, size, base, questions)
    write_json(files.manifest, manifest)
    return manifest


def _inputs(size: TaskSize) -> dict[str, Any]:
    """Everything that decides the bytes of the files."""
    return {
        "generator": _code_digest(),
        "seed": size.seed,
        "size": {"train": size.train, "dev": size.dev, "test": size.test},
        "sources": {
            package.name: {
                "version": package.version,
                "text_licence": package.text_licence,
                "package_licence": package.package_licence,
                "attribution": package.attribution,
            }
            for package in _PACKAGES
        },
    }


@cache
def _code_digest() -> str:
    """SHA-256 over the generator's modules and templates: other code, other files."""
    digest = sha256()
    root = resources.files("pipeline.tasks")
    for folder in (root, root.joinpath("sources")):
        for file in sorted(folder.iterdir(), key=lambda item: item.name):
            if file.name in _NOT_GENERATING or not file.name.endswith((".py", ".toml")):
                continue
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


_NOT_GENERATING = {"files.py", "oracle.py", "default.py", "atomic.py"}


def _manifest(
    files: TaskFiles, size: TaskSize, base: KnowledgeBase, questions: Mapping[str, list[Question]]
) -> dict[str, Any]:
    return {
        **_inputs(size),
        "counts": {
            "passages": len(base.documents),
            "entities": dict(sorted(Counter(entity.kind for entity in base.facts).items())),
            "facts": sum(len(facts) for facts in base.facts.values()),
            **{split: _question_counts(rows) for split, rows in questions.items()},
        },
        "sha256": {role: sha256_of(path) for role, path in files.data().items()},
    }


def _question_counts(questions: Sequence[Question]) -> dict[str, Any]:
    hops = Counter(str(question.hops) for question in questions)
    answers = Counter(question.answers[0] for question in questions)
    answer, count = answers.most_common(1)[0]
    return {
        "questions": len(questions),
        "hops": dict(sorted(hops.items())),
        "types": len({question.metadata["type"] for question in questions}),
        "majority_answer": {"answer": answer, "share": round(count / len(questions), 4)},
    }
