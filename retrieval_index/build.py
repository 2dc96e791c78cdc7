"""Builds an index: scan the corpus, embed it in shards, hand the vectors to FAISS, swap it in.

    corpus ──scan──► offsets, hashes ──► shards of embeddings ──► FAISS ──► manifest ──► rename
                                          (kept when killed)                (last)

Everything is written to ``<index>.partial``; the index directory itself is only ever replaced
whole. A killed build leaves its finished shards there, and the same command goes on from them.
Vectors of texts that the present index (if flat) or those shards hold are not computed again.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.corpus import (
    CorpusScan,
    PassageStore,
    is_gzipped,
    scan_corpus,
    write_plain_text,
)
from retrieval_index.encoder import Encoder, encoder_fingerprint, resolve_encoder
from retrieval_index.errors import IndexBuildError, IndexMismatchError
from retrieval_index.files import fsync_directory, write_atomically
from retrieval_index.manifest import (
    FORMAT,
    INDEX_FILE,
    MANIFEST_FILE,
    OFFSETS_FILE,
    PASSAGES_FILE,
    TEXT_HASHES_FILE,
    Manifest,
)
from retrieval_index.progress import EncodingProgress
from retrieval_index.vectors import EmbeddingKey, KnownVectors, ShardDirectory, vectors_of_index
from retrieval_index.workers import encode_rows

__all__ = ["SHARD_ROWS", "build_index"]

SHARD_ROWS = 1024  # passages a shard: at most that much work is lost by a kill, for each worker
_SHARDS = "shards"
_MAX_TRAINING_ROWS = 200_000
_RECORDED_VERSIONS = ("faiss-cpu", "faiss-gpu", "sentence-transformers", "torch", "transformers")


def build_index(
    corpus: Path,
    index: Path,
    encoder: str,
    query_prefix: str = "",
    passage_prefix: str = "",
    factory: str = "Flat",
    batch_size: int = 64,
    threads: int = 1,
    workers: int = 1,
    progress: bool = True,
    device: str = "cpu",
) -> Manifest:
    """Build the index of ``corpus`` in directory ``index`` and return its manifest.

    ``encoder`` is a directory, a hub name or ``package:NAME``; each passage's ``contents`` is
    embedded verbatim behind ``passage_prefix``. ``factory`` is a FAISS factory string. ``threads``
    are torch threads of each of ``workers`` processes (1: this process). An index that is up to
    date is left alone, and no model is loaded.

    Raises CorpusError, EncoderError and IndexBuildError; none of them touches an existing index.
    A script that calls this with ``workers`` above 1 needs an ``if __name__ == "__main__"`` guard.
    """
    corpus, index = Path(corpus), Path(index)
    _check_arguments(index, batch_size=batch_size, threads=threads, workers=workers)
    scan = scan_corpus(corpus)
    fingerprint = encoder_fingerprint(resolve_encoder(encoder))
    wanted = dict(
        encoder_fingerprint=fingerprint,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        factory=factory,
        corpus_sha256=scan.sha256,
    )
    current = _up_to_date(index, wanted)
    if current is not None:
        return current
    model = Encoder(encoder, threads=threads, batch_size=batch_size, device=device)
    empty = _faiss_index(factory, model.dimension, scan.count)
    work = index.with_name(index.name + ".partial")
    with _exclusive(work, index):
        shards = ShardDirectory(work / _SHARDS, EmbeddingKey(fingerprint, passage_prefix))
        shards.open()
        passages = _write_row_files(corpus, scan, work)
        with PassageStore(passages, work / OFFSETS_FILE, cache_size=0) as store:
            _embed(scan, store, model, shards, index, workers=workers, progress=progress)
        _write_faiss(empty, factory, shards, scan.count, work / INDEX_FILE)
        manifest = Manifest(
            format=FORMAT,
            encoder=encoder,
            dimension=model.dimension,
            metric="inner_product",
            count=scan.count,
            corpus=os.path.relpath(corpus.resolve(), index.resolve()),
            corpus_bytes=scan.num_bytes,
            index_bytes=(work / INDEX_FILE).stat().st_size,
            versions=_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            **wanted,
        )
        manifest.write(work)
        _swap(work, index)
    return manifest


def _check_arguments(index: Path, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise IndexBuildError(f"{name}={value}: must be at least 1")
    if index.exists() and not index.is_dir():
        raise IndexBuildError(f"{index}: is a file; give a directory for the index")
    if index.is_dir() and any(index.iterdir()) and not (index / MANIFEST_FILE).is_file():
        raise IndexBuildError(
            f"{index}: holds files that are not an index, and a build would replace them; "
            "give a new or empty directory"
        )


def _up_to_date(index: Path, wanted: dict[str, str]) -> Manifest | None:
    try:
        manifest = Manifest.read(index)
    except IndexMismatchError:
        return None
    same = all(getattr(manifest, name) == value for name, value in wanted.items())
    whole = (index / INDEX_FILE).is_file() and (index / OFFSETS_FILE).is_file()
    if not (same and whole and (index / INDEX_FILE).stat().st_size == manifest.index_bytes):
        return None
    return manifest


@contextmanager
def _exclusive(work: Path, index: Path) -> Iterator[None]:
    """Make ``work`` and hold its lock, which dies with the process that holds it."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise IndexBuildError(
            f"{index}: cannot write there ({error.strerror}); give a writable directory"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise IndexBuildError(
            f"{index}: another build is writing it; wait for that one, or end it"
        ) from None
    except OSError as error:
        raise IndexBuildError(
            f"{index}: cannot be written ({error}); finished embeddings are kept in {work}: the "
            "same command goes on from them"
        ) from error
    finally:
        os.close(descriptor)


def _write_row_files(corpus: Path, scan: CorpusScan, work: Path) -> Path:
    """Write offsets and hashes (and the text of a gzipped corpus); returns the plain corpus."""
    write_atomically(work / OFFSETS_FILE, lambda file: np.save(file, scan.offsets))
    write_atomically(work / TEXT_HASHES_FILE, lambda file: np.save(file, scan.text_hashes))
    if not is_gzipped(corpus):
        (work / PASSAGES_FILE).unlink(missing_ok=True)  # of an earlier, gzipped corpus
        return corpus
    write_atomically(work / PASSAGES_FILE, lambda file: write_plain_text(corpus, file))
    return work / PASSAGES_FILE


def _embed(
    scan: CorpusScan,
    store: PassageStore,
    model: Encoder,
    shards: ShardDirectory,
    index: Path,
    *,
    workers: int,
    progress: bool,
) -> None:
    """Make every shard that is not there yet; memory is bounded by the vectors that are reused."""
    rows_of = {n: np.arange(a, min(a + SHARD_ROWS, scan.count)) for n, a in _starts(scan.count)}
    held = {n for n, rows in rows_of.items() if shards.holds(n, scan.text_hashes[rows])}
    missing = {n: rows for n, rows in rows_of.items() if n not in held}
    if not missing:
        return
    stale = [n for n in shards.shards() if n not in held]  # of another corpus
    known = KnownVectors(
        vectors_of_index(index, shards.key)
        + [(shards.hashes(n), np.array(shards.read(n))) for n in stale]
    )
    unknown = {n: rows[~known.contains(scan.text_hashes[rows])] for n, rows in missing.items()}
    total = sum(map(len, unknown.values()))
    with EncodingProgress(total, enabled=progress) as shown:
        encoded = encode_rows(
            unknown, store, model, shards.key.passage_prefix, workers, shown.advance
        )
        for n, vectors in encoded:
            hashes = scan.text_hashes[missing[n]]
            shards.write(n, hashes, _merged(hashes, known, vectors))


def _merged(hashes: np.ndarray, known: KnownVectors, fresh: np.ndarray) -> np.ndarray:
    """float32[n, d]: known vectors in their places, fresh ones in the others, in order."""
    is_known, old = known.find(hashes)
    whole = np.empty((len(hashes), fresh.shape[1]), dtype=np.float32)
    whole[~is_known] = fresh
    if is_known.any():
        whole[is_known] = old
    return whole


def _starts(count: int) -> Iterator[tuple[int, int]]:
    return enumerate(range(0, count, SHARD_ROWS))


def _faiss_index(factory: str, dimension: int, count: int) -> Any:
    """An empty FAISS index; refuses a factory string that FAISS does not take."""
    import faiss

    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexBuildError(
            f"factory={factory}: FAISS refuses it for {count} vectors of {dimension} dimensions "
            f"({_faiss_reason(error)}); use Flat, or a string of FAISS's index factory"
        ) from None


def _write_faiss(index: Any, factory: str, shards: ShardDirectory, count: int, path: Path) -> None:
    """Train where the factory asks for it, add all shards in order, write the file."""
    import faiss

    numbers = [n for n, _ in _starts(count)]
    try:
        if not index.is_trained:
            index.train(_training_rows(shards, numbers, count))
        for n in numbers:
            index.add(np.ascontiguousarray(shards.read(n)))
    except RuntimeError as error:
        raise IndexBuildError(
            f"factory={factory}: FAISS cannot build it from {count} passages "
            f"({_faiss_reason(error)}); use Flat, or fewer clusters"
        ) from None
    temporary = path.with_name(f".{path.name}.tmp")
    faiss.write_index(index, str(temporary))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _training_rows(shards: ShardDirectory, numbers: list[int], count: int) -> np.ndarray:
    """float32[m, d]: an even sample of all rows, m at most ``_MAX_TRAINING_ROWS``."""
    step = max(1, -(-count // _MAX_TRAINING_ROWS))
    return np.concatenate([shards.read(n)[::step] for n in numbers])


def _faiss_reason(error: RuntimeError) -> str:
    """FAISS's message without its C++ place: ``Error in X at Y:1: Error: 'c' failed: why``."""
    return str(error).strip().splitlines()[-1].rpartition("failed: ")[2][:200]


def _swap(work: Path, index: Path) -> None:
    """Put the finished directory in the place of the old one."""
    fsync_directory(work)
    old = index.with_name(index.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if index.exists():
        os.replace(index, old)
    os.replace(work, index)
    fsync_directory(index.parent)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(index / _SHARDS, ignore_errors=True)  # last: until now a rebuild could use them


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _RECORDED_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
