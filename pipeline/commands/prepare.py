"""``python -m pipeline prepare``: corpus, questions, index and oracle check of a task.

Makes what is missing or stale and reuses the rest; says which in one plain line each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import sha256_of, write_json
from pipeline.config import GleanerConfig, RetrieverConfig, TaskConfig
from pipeline.errors import UserError
from pipeline.tasks.default import TaskFiles, TaskSize, generate_task, task_is_current
from pipeline.tasks.files import read_questions
from pipeline.tasks.oracle import MIN_ORACLE_RECALL, check_oracle

if TYPE_CHECKING:
    from retrieval_index import Manifest

__all__ = ["run"]

_ORACLE_SPLITS = ("dev", "test")
_QUERIES_PER_BATCH = 256


def run(config: GleanerConfig, *, questions: bool = True) -> None:
    """Prepare the task of ``config``; a second run reuses everything.

    Without ``questions`` a task of the user's own needs none: they come from elsewhere.

    Raises UserError when a source package, a file or the encoder is missing or unfit, and when
    searches would want more passages than there are.
    """
    files = _files(config.task)
    if config.task.generate:
        _prepare_task(config.task, files)
    else:
        wanted = {"train", "dev", "test"} if questions else set()
        _require_files(files, wanted if config.retriever.url else wanted | {"corpus"})
    if config.retriever.url:
        print(f"index: not needed, searches go to {config.retriever.url}")
        return
    from retrieval_index.errors import RetrievalError

    try:
        passages = _prepare_index(config.task, config.retriever)
        if config.protocol.top_k > passages:
            raise UserError(
                f"protocol.top_k={config.protocol.top_k}: {config.task.corpus} has {passages} "
                "passages; ask for at most as many"
            )
        if config.task.generate:
            _prepare_oracle(config, files)
    except RetrievalError as error:
        raise UserError(str(error)) from error


def _files(task: TaskConfig) -> TaskFiles:
    return TaskFiles(
        corpus=Path(task.corpus),
        train=Path(task.train),
        dev=Path(task.dev),
        test=Path(task.test),
        manifest=Path(task.dir) / "manifest.json",
    )


def _prepare_task(task: TaskConfig, files: TaskFiles) -> None:
    size = TaskSize(train=task.num_train, dev=task.num_dev, test=task.num_test, seed=task.seed)
    if task_is_current(files, size):
        print(f"task: reusing corpus and questions in {task.dir}")
        return
    print(f"task: making corpus and questions in {task.dir} (seed {task.seed})", flush=True)
    counts = generate_task(files, size)["counts"]
    print(
        f"task: {counts['passages']:,} passages; questions: {task.num_train:,} train, "
        f"{task.num_dev:,} dev, {task.num_test:,} test"
    )


def _require_files(files: TaskFiles, wanted: Set[str]) -> None:
    for role, path in files.data().items():
        if role in wanted and not path.is_file():
            raise UserError(
                f"task.{role}={path} does not exist. Remedy: correct task.{role}, or "
                f"task.generate=true to make the default task"
            )


def _prepare_index(task: TaskConfig, retriever: RetrieverConfig) -> int:
    """How many passages it has."""
    from retrieval_index import Manifest, build_index
    from retrieval_index.errors import IndexMismatchError

    index = Path(task.index)
    try:
        before = Manifest.read(index)
    except IndexMismatchError:
        before = None
    if before is not None and not task.generate:
        _check_given_index(before, task, retriever)
        print(f"index: reusing {index} ({before.count:,} passages, {before.encoder})", flush=True)
        return before.count
    manifest = build_index(
        corpus=Path(task.corpus),
        index=index,
        factory=retriever.factory,
        batch_size=retriever.batch_size,
        threads=1,
        workers=len(os.sched_getaffinity(0)),
        lexical=retriever.hybrid or (before is not None and before.lexical),
        # one actor can have all shards of an index
        shards=before.shards if before is not None and retriever.shards == 1 else retriever.shards,
        **_encoder(retriever),
    )
    done = "reusing" if manifest == before else "built"
    print(f"index: {done} {index} ({manifest.count:,} passages, {retriever.encoder})", flush=True)
    return manifest.count


def _check_given_index(manifest: Manifest, task: TaskConfig, retriever: RetrieverConfig) -> None:
    """The user's own index belongs to the corpus and encoder; it is never replaced unasked.

    Raises IndexMismatchError, with the command that builds it again.
    """
    from retrieval_index.matching import (
        check_corpus,
        check_encoder,
        check_lexical,
        check_prefixes,
        check_shards,
    )

    index, corpus = Path(task.index), Path(task.corpus)
    check_corpus(manifest, index, corpus, manifest.rebuild_command(index, corpus))
    check_prefixes(manifest, index, retriever.query_prefix, retriever.passage_prefix)
    check_shards(manifest, index, retriever.shards)
    if retriever.hybrid:
        check_lexical(manifest, index, corpus)
    check_encoder(manifest, index, retriever.encoder, retriever.pooling, retriever.max_length)


def _encoder(retriever: RetrieverConfig) -> dict[str, Any]:
    return {
        "encoder": retriever.encoder,
        "query_prefix": retriever.query_prefix,
        "passage_prefix": retriever.passage_prefix,
        **retriever.reading(),
    }


def _prepare_oracle(config: GleanerConfig, files: TaskFiles) -> None:
    path = Path(config.task.dir) / "oracle.json"
    inputs = _oracle_inputs(config, files)
    if _recorded_inputs(path) == inputs:
        print(f"oracle check: reusing {path}")
        return
    from retrieval_index import DenseIndex

    corpus = Path(config.task.corpus)
    retriever = config.retriever
    opened = DenseIndex.open(
        Path(config.task.index), corpus=corpus, **_encoder(retriever), **retriever.stages()
    )

    def search(queries: Sequence[str], top_k: int) -> list[list[str]]:
        found: list[list[str]] = []
        for start in range(0, len(queries), _QUERIES_PER_BATCH):
            hits = opened.search(list(queries[start : start + _QUERIES_PER_BATCH]), top_k)
            found += [[hit.doc_id for hit in row] for row in hits]
        return found

    top_k = config.protocol.top_k
    splits = {
        split: check_oracle(read_questions(files.data()[split]), search, top_k)
        for split in _ORACLE_SPLITS
    }
    write_json(path, {"inputs": inputs, "splits": splits})
    _tell_oracle(splits)


def _oracle_inputs(config: GleanerConfig, files: TaskFiles) -> dict[str, Any]:
    """What the numbers depend on."""
    retriever = config.retriever
    return {
        "top_k": config.protocol.top_k,
        "factory": retriever.factory,
        **_encoder(retriever),
        **retriever.stages(),
        "sha256": {role: sha256_of(path) for role, path in files.data().items()},
    }


def _recorded_inputs(path: Path) -> dict[str, Any] | None:
    try:
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    except (OSError, json.JSONDecodeError, KeyError):
        return None
    return recorded


def _tell_oracle(splits: dict[str, dict[str, Any]]) -> None:
    for split, result in splits.items():
        overall = result["all"]
        print(
            f"oracle check, {split}: right sub-questions find all evidence for "
            f"{overall['oracle_all']:.1%}, the whole question for "
            f"{overall['whole_question_all']:.1%}, its first name for "
            f"{overall['first_entity_all']:.1%}"
        )
        if overall["oracle_all"] < MIN_ORACLE_RECALL:
            print(
                f"oracle check, {split}: below {MIN_ORACLE_RECALL:.0%}: this encoder is too weak "
                f"for the task; choose another retriever.encoder"
            )
