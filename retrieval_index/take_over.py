"""Takes over an index file that was made elsewhere: Search-R1's ``e5_Flat.index`` and others.

Row ``n`` of the file must be line ``n`` of the corpus. Whether it is, and whether the encoder is
the one that made it, is looked at in a sample: passages are embedded again and compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.corpus import PassageStore, scan_corpus
from retrieval_index.encoder import Encoder
from retrieval_index.errors import IndexBuildError, IndexMismatchError, faiss_reason
from retrieval_index.flat_file import read_flat
from retrieval_index.index_directory import (
    check_target,
    library_versions,
    new_index_directory,
    write_row_files,
)
from retrieval_index.manifest import FLAT, FORMAT, INDEX_FILE, OFFSETS_FILE, Manifest
from retrieval_index.model_files import hub_revision, own_pooling, resolve_encoder
from retrieval_index.sample import ENOUGH_FOUND, Sample, embed_sample
from retrieval_index.vector_search import FaissSearch

__all__ = ["import_index"]

_LENGTH = 1e-3  # how far a length may be from 1: half precision moves it by less


@dataclass(frozen=True, slots=True)
class _Given:
    """An index file as FAISS opens it; ``vectors`` where it is a flat one."""

    count: int
    dimension: int
    factory: str
    vectors: np.ndarray | None
    faiss: Any


def import_index(
    index_file: Path,
    corpus: Path,
    index: Path,
    encoder: str,
    query_prefix: str = "",
    passage_prefix: str = "",
    pooling: str = "",
    max_length: int = 0,
    samples: int = 64,
    threads: int = 1,
    device: str = "cpu",
) -> Manifest:
    """Make index directory ``index`` of a FAISS file and its corpus; returns the manifest.

    The file is linked to, not copied. Raises IndexMismatchError where counts differ, where the file
    is not of inner products, and where sampled passages are not found at their rows; CorpusError
    and EncoderError; none of them leaves a directory behind.
    """
    index_file, corpus, index = Path(index_file), Path(corpus), Path(index)
    if samples < 1:
        raise IndexBuildError(f"samples={samples}: must be at least 1")
    check_target(index, index_file, corpus)
    given = _open(index_file)
    scan = scan_corpus(corpus, progress=True)
    if scan.count != given.count:
        raise IndexMismatchError(
            f"{index_file}: {given.count:,} vectors for the {scan.count:,} passages of {corpus}; "
            "give the corpus that it was made from"
        )
    model = Encoder(encoder, threads=threads, device=device, pooling=pooling, max_length=max_length)
    if model.dimension != given.dimension:
        raise IndexMismatchError(
            f"{index_file}: vectors of {given.dimension} dimensions, encoder {encoder} makes "
            f"{model.dimension}; name the encoder that it was made with"
        )
    with new_index_directory(index) as work:
        plain = write_row_files(corpus, scan, work)
        with PassageStore(plain, work / OFFSETS_FILE, cache_size=0) as store:
            sample = embed_sample(store, model, passage_prefix, samples)
        _check_sample(given, index_file, sample, encoder, passage_prefix)
        (work / INDEX_FILE).symlink_to(index_file.resolve())
        manifest = Manifest(
            format=FORMAT,
            encoder=encoder,
            encoder_fingerprint=model.fingerprint,
            dimension=given.dimension,
            metric="inner_product",
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
            pooling=pooling or own_pooling(resolve_encoder(encoder)),
            max_length=max_length,
            revision=hub_revision(resolve_encoder(encoder)),
            factory=given.factory,
            count=scan.count,
            corpus=os.path.relpath(corpus.resolve(), index.resolve()),
            corpus_sha256=scan.sha256,
            corpus_bytes=scan.num_bytes,
            corpus_mtime_ns=scan.mtime_ns,
            index_bytes=index_file.stat().st_size,
            imported=True,
            versions=library_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        manifest.write(work)
    return manifest


def _open(path: Path) -> _Given:
    if not path.is_file():
        raise IndexMismatchError(f"{path}: no such file; give a FAISS index file")
    try:
        vectors = read_flat(path)
        return _Given(len(vectors), vectors.shape[1], FLAT, vectors, None)
    except ValueError:
        pass  # of another kind, or cut off: FAISS says
    import faiss

    try:
        opened = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexMismatchError(
            f"{path}: FAISS cannot read it ({faiss_reason(error)}); give a FAISS index file, or "
            "fetch it again"
        ) from None
    if opened.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexMismatchError(
            f"{path}: an index of Euclidean distances; this package searches by inner product: "
            "build one from the corpus"
        )
    kind = type(faiss.downcast_index(opened)).__name__.removeprefix("Index")
    return _Given(opened.ntotal, opened.d, kind, None, opened)


def _check_sample(
    given: _Given, index_file: Path, sample: Sample, encoder: str, passage_prefix: str
) -> None:
    """Sampled rows hold the vectors of their passages."""
    if given.vectors is not None:
        lengths = np.linalg.norm(np.asarray(given.vectors[sample.rows]), axis=1)
        if not (np.abs(lengths - 1) <= _LENGTH).all():
            raise IndexMismatchError(
                f"{index_file}: its vectors are not of length 1, so that inner products are no "
                "cosines; build the index from the corpus"
            )
        wrong = sample.wrong(sample.cosines([(0, given.vectors)]), imported=True)
        enough = not len(wrong)
    else:
        wrong = sample.not_found(FaissSearch(given.faiss, 0), given.count)
        enough = 1 - len(wrong) / len(sample) >= ENOUGH_FOUND
    if not enough:
        raise IndexMismatchError(
            f"{index_file}: {len(wrong)} of {len(sample)} sampled passages do not have the "
            f"vector that encoder {encoder} makes with passage_prefix={passage_prefix!r} (the "
            f"first is row {wrong[0]}); give the encoder, prefix, pooling, max_length and "
            "corpus that it was made with"
        )
