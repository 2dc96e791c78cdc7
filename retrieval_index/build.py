"""Builds an index: scan the corpus, embed it in shards, hand the vectors to FAISS, swap it in.

    corpus ──scan──► offsets, hashes ──► shards of embeddings ──► FAISS ──► manifest ──► rename
                                          (kept when killed)                (last)

A killed build leaves its finished shards (and index files) in ``<index>.partial``, and the same
command goes on from them. Vectors of texts that the present index (where it has them) or those
shards hold are not computed again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.assemble import empty_index, limit_faiss, write_indexes, write_vectors
from retrieval_index.corpus import CorpusScan, PassageStore, scan_corpus
from retrieval_index.encoder import Encoder, check_settings
from retrieval_index.errors import IndexBuildError, IndexMismatchError
from retrieval_index.hybrid import (
    LEXICAL_DIRECTORY,
    LexicalIndex,
    build_lexical,
    require_bm25,
)
from retrieval_index.index_directory import (
    SHARDS,
    check_target,
    finish_swap,
    library_versions,
    new_index_directory,
    write_row_files,
)
from retrieval_index.manifest import (
    FLAT,
    FORMAT,
    OFFSETS_FILE,
    TEXT_HASHES_FILE,
    VECTORS_FILE,
    Manifest,
    shard_files,
)
from retrieval_index.model_files import (
    encoder_dimension,
    encoder_fingerprint,
    hub_revision,
    own_pooling,
    resolve_encoder,
)
from retrieval_index.progress import PassageProgress
from retrieval_index.recommend import AUTO, memory_bytes, recommend
from retrieval_index.vectors import (
    SHARD_ROWS,
    EmbeddingKey,
    KnownVectors,
    ShardDirectory,
    VectorSource,
    vectors_of_index,
)
from retrieval_index.workers import Encoders

__all__ = ["SHARD_ROWS", "build_index"]


def build_index(
    corpus: Path,
    index: Path,
    encoder: str,
    query_prefix: str = "",
    passage_prefix: str = "",
    pooling: str = "",
    max_length: int = 0,
    factory: str = "Flat",
    batch_size: int = 64,
    threads: int = 1,
    workers: int = 1,
    progress: bool = True,
    device: str = "cpu",
    keep_vectors: bool = True,
    lexical: bool = False,
    shards: int = 1,
    force: bool = False,
) -> Manifest:
    """Build the index of ``corpus`` in directory ``index`` and return its manifest.

    ``encoder`` is a directory, a hub name or ``package:NAME``; each passage's ``contents`` is
    embedded verbatim behind ``passage_prefix``. ``pooling`` (mean, cls) and ``max_length`` (tokens)
    take the place of the model's own. ``factory`` is a FAISS factory string, or ``auto``:
    `recommend` chooses by the corpus's size and this machine's memory. ``threads`` are torch
    threads of each of ``workers`` processes (1: this process). ``keep_vectors``: beside an
    approximate index its vectors are kept, to measure its recall and to build it again without
    encoding. ``lexical``: a BM25 index of the same passages is made, too, for hybrid search.
    ``shards``: index files, each of a range of rows, that different actors can serve. An index that
    is up to date is left alone, and no model is loaded, but for ``force``: then all is made anew.

    Raises CorpusError, EncoderError and IndexBuildError; none of them touches an existing index.
    A script that calls this with ``workers`` above 1 needs an ``if __name__ == "__main__"`` guard.
    """
    corpus, index = Path(corpus), Path(index)
    _check_counts(batch_size=batch_size, threads=threads, workers=workers, shards=shards)
    check_target(index, corpus)
    if lexical:
        require_bm25()
    scan = scan_corpus(corpus, progress=progress)
    if factory == AUTO:
        factory = recommend(scan.count, encoder_dimension(encoder), memory_bytes()).factory
    directory = resolve_encoder(encoder)
    check_settings(encoder, directory, pooling, max_length)
    fingerprint = encoder_fingerprint(directory, pooling, max_length)
    wanted: dict[str, Any] = dict(
        encoder_fingerprint=fingerprint,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        factory=factory,
        corpus_sha256=scan.sha256,
        lexical=lexical,
        shards=shards,
    )
    current = None if force else _up_to_date(index, wanted, keep_vectors)
    if current is not None:
        finish_swap(index)
        return current
    if shards > scan.count:
        raise IndexBuildError(f"shards={shards}: the corpus has {scan.count} passages")
    files = shard_files(scan.count, shards)
    load = partial(
        Encoder,
        encoder,
        threads=threads,
        batch_size=batch_size,
        pooling=pooling,
        max_length=max_length,
    )
    with Encoders(load, workers, device) as encoders:
        dimension = encoders.dimension()
        empty_index(factory, dimension, scan.count)  # refused before anything is encoded
        with new_index_directory(index) as work:
            key = EmbeddingKey(fingerprint, passage_prefix)
            embedded = ShardDirectory(work / SHARDS, key, SHARD_ROWS)
            if force:
                shutil.rmtree(embedded.path, ignore_errors=True)
            embedded.open()
            passages = write_row_files(corpus, scan, work)
            with PassageStore(passages, work / OFFSETS_FILE, cache_size=0) as store:
                known = [] if force else vectors_of_index(index, key)
                _embed(scan, store, encoders, embedded, known, progress=progress)
                encoders.close()
                if lexical:
                    build_lexical(store, work / LEXICAL_DIRECTORY)
            limit_faiss(threads * workers)
            if keep_vectors and factory != FLAT:
                write_vectors(embedded, work / VECTORS_FILE, dimension, scan.count)
            title = f"index, {factory}"
            with PassageProgress(title, scan.count, enabled=progress, brief=True) as shown:
                write_indexes(
                    factory, dimension, embedded, files, scan.text_hashes, work, shown.advance
                )
            manifest = Manifest(
                format=FORMAT,
                encoder=encoder,
                pooling=pooling or own_pooling(directory),
                max_length=max_length,
                revision=hub_revision(directory),
                dimension=dimension,
                metric="inner_product",
                count=scan.count,
                corpus=os.path.relpath(corpus.resolve(), index.resolve()),
                corpus_bytes=scan.num_bytes,
                corpus_mtime_ns=scan.mtime_ns,
                index_bytes=sum((work / file.name).stat().st_size for file in files),
                vectors_bytes=_size(work / VECTORS_FILE),
                versions=library_versions(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                **wanted,
            )
            manifest.write(work)
    return manifest


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise IndexBuildError(f"{name}={value}: must be at least 1")


def _up_to_date(index: Path, wanted: dict[str, Any], keep_vectors: bool) -> Manifest | None:
    """The manifest of an index that is what is wanted, as far as that can be seen at once."""
    try:
        manifest = Manifest.read(index)
    except IndexMismatchError:
        return None
    same = all(getattr(manifest, name) == value for name, value in wanted.items())
    names = [file.name for file in manifest.shard_files()]
    try:
        bytes_found = sum((index / name).stat().st_size for name in names)
        rows = [len(np.load(index / f, mmap_mode="r")) for f in (OFFSETS_FILE, TEXT_HASHES_FILE)]
        if keep_vectors and manifest.factory != FLAT:
            same &= (index / VECTORS_FILE).stat().st_size == manifest.vectors_bytes
        if manifest.lexical:
            LexicalIndex.open(index / LEXICAL_DIRECTORY, manifest.count, "")
    except (OSError, ValueError, IndexMismatchError):
        return None
    if not same or bytes_found != manifest.index_bytes:
        return None
    if rows != [manifest.count + 1, manifest.count]:
        return None
    return manifest


def _embed(
    scan: CorpusScan,
    store: PassageStore,
    encoders: Encoders,
    embedded: ShardDirectory,
    known: Sequence[VectorSource],
    *,
    progress: bool,
) -> None:
    """Make every shard that is not there yet. ``known`` are hashes and vectors from before."""
    rows_of = {
        n: np.arange(start, min(start + embedded.rows, scan.count))
        for n, start in enumerate(range(0, scan.count, embedded.rows))
    }
    held = {n for n, rows in rows_of.items() if embedded.holds(n, scan.text_hashes[rows])}
    missing = {n: rows for n, rows in rows_of.items() if n not in held}
    if not missing:
        return
    embedded.set_aside([n for n in embedded.shards() if n not in held])  # of another corpus
    before = KnownVectors([*known, *embedded.sources_aside()])
    unknown = {n: rows[~before.contains(scan.text_hashes[rows])] for n, rows in missing.items()}
    total = sum(map(len, unknown.values()))
    with PassageProgress("encode", total, enabled=progress) as shown:
        encoded = encoders.encode_rows(unknown, store, embedded.key.passage_prefix, shown.advance)
        for n, vectors in encoded:
            hashes = scan.text_hashes[missing[n]]
            embedded.write(n, hashes, _merged(hashes, before, vectors))
    embedded.drop_aside()


def _merged(hashes: np.ndarray, known: KnownVectors, fresh: np.ndarray) -> np.ndarray:
    """float32[n, d]: known vectors in their places, fresh ones in the others, in order."""
    is_known, old = known.find(hashes, fresh.shape[1])
    whole = np.empty((len(hashes), fresh.shape[1]), dtype=np.float32)
    whole[~is_known] = fresh
    whole[is_known] = old
    return whole
