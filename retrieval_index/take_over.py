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

__all__ = ["import_index"]

_SAME = 0.99  # cosine; half-precision encoders and other batches move it by less
_LENGTH = 1e-3  # how far a length may be from 1: half precision moves it by less
_AMONG, _MANY = 5, 1000  # an approximate index of many has it among its nearest few
_SHARE_FOUND = 0.8  # of sampled passages, that an approximate index finds by themselves


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
    model = Encoder(encoder, threads=threads, device=device)
    if model.dimension != given.dimension:
        raise IndexMismatchError(
            f"{index_file}: vectors of {given.dimension} dimensions, encoder {encoder} makes "
            f"{model.dimension}; name the encoder that it was made with"
        )
    with new_index_directory(index) as work:
        plain = write_row_files(corpus, scan, work)
        rows = np.sort(np.random.default_rng(0).choice(scan.count, min(samples, scan.count), False))
        with PassageStore(plain, work / OFFSETS_FILE, cache_size=0) as store:
            texts = [passage_prefix + store[int(row)].contents for row in rows]
        _check_sample(given, index_file, rows, model.encode(texts), encoder, passage_prefix)
        (work / INDEX_FILE).symlink_to(index_file.resolve())
        manifest = Manifest(
            format=FORMAT,
            encoder=encoder,
            encoder_fingerprint=model.fingerprint,
            dimension=given.dimension,
            metric="inner_product",
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
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
    given: _Given,
    index_file: Path,
    rows: np.ndarray,
    embedded: np.ndarray,
    encoder: str,
    passage_prefix: str,
) -> None:
    """Sampled rows hold the vectors of their passages."""
    if given.vectors is not None:
        stored = np.asarray(given.vectors[rows], dtype=np.float32)
        lengths = np.linalg.norm(stored, axis=1)
        if not (np.abs(lengths - 1) <= _LENGTH).all():
            raise IndexMismatchError(
                f"{index_file}: its vectors are not of length 1, so that inner products are no "
                "cosines; build the index from the corpus"
            )
        same = (stored * embedded).sum(axis=1) >= _SAME
        enough = bool(same.all())
    else:
        nearest = _AMONG if given.count >= _MANY else 1
        same = (given.faiss.search(embedded, nearest)[1] == rows[:, None]).any(axis=1)
        enough = float(same.mean()) >= _SHARE_FOUND
    if not enough:
        row = int(rows[np.flatnonzero(~same)[0]])
        raise IndexMismatchError(
            f"{index_file}: {int((~same).sum())} of {len(rows)} sampled passages do not have the "
            f"vector that encoder {encoder} makes with passage_prefix={passage_prefix!r} (the "
            f"first is row {row}); give the encoder, prefix and corpus that it was made with"
        )
