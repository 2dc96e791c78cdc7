"""Is an index whole, and how good is it? Looked at in full where that is cheap, else in a sample.

corpus against manifest      size and checksum
lines against offsets        every line read again: where it starts, what it says
vectors                      finite, of length 1 (where the index has them)
sampled passages             embedded again: the stored vector is theirs, and an approximate index
                             finds them by it
duplicates                   passages of the same text
recall                       of an approximate index against exact search at k, by its run-time
                             parameter, with the time a query takes (recall.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from retrieval_index.corpus import CorpusScan, scan_corpus
from retrieval_index.encoder import Encoder
from retrieval_index.errors import QueryError, RetrievalError
from retrieval_index.hybrid import LEXICAL_DIRECTORY, LexicalIndex
from retrieval_index.manifest import (
    FLAT,
    OFFSETS_FILE,
    PASSAGES_FILE,
    TEXT_HASHES_FILE,
    VECTORS_FILE,
    Manifest,
)
from retrieval_index.matching import check_encoder, check_files, open_passages, read_vectors
from retrieval_index.sample import ENOUGH_FOUND, Sample, embed_sample
from retrieval_index.vector_search import VectorSearch
from retrieval_index.vectors import stored_vectors

__all__ = ["IndexCheck", "check_index"]

_LENGTH = 1e-3  # how far a vector's length may be from 1
_ROWS = 65_536  # vectors looked at together
_SHOWN = 3  # examples of duplicates


@dataclass(slots=True)
class IndexCheck:
    """What was found. ``problems`` is empty where the index can be trusted."""

    manifest: Manifest
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, what: str, fine: bool = True) -> None:
        """Add a line to what was found, or to the problems."""
        (self.notes if fine else self.problems).append(what)


def check_index(
    index: Path,
    corpus: Path | None = None,
    encoder: str | None = None,
    samples: int = 64,
    threads: int = 1,
    device: str = "cpu",
) -> IndexCheck:
    """Everything but recall. Raises RetrievalError only where nothing can be looked at.

    ``samples`` (at least 1) passages are embedded again, where nothing else is wrong.
    """
    if samples < 1:
        raise QueryError(f"samples={samples}: must be at least 1")
    index = Path(index)
    manifest = Manifest.read(index)
    corpus = Path(corpus) if corpus is not None else index / manifest.corpus
    found = IndexCheck(manifest)
    scan = scan_corpus(corpus, progress=True)
    again = manifest.rebuild_command(index, corpus)
    if scan.sha256 == manifest.corpus_sha256:
        found.note(f"corpus {corpus}: {scan.count:,} passages, the checksum of the manifest")
    else:
        found.note(f"corpus {corpus}: not that of the manifest; build it again: {again}", False)
    _check_rows(found, index, scan)
    _note_duplicates(found, scan)
    vectors: list[tuple[int, np.ndarray]] = []
    try:
        check_files(manifest, index, again)
        names = ", ".join(file.name for file in manifest.shard_files())
        found.note(f"{names}: {manifest.count:,} x {manifest.dimension}, {manifest.factory}")
        vectors = stored_vectors(manifest, index)
        if vectors and sum(len(part) for _, part in vectors) != manifest.count:
            raise ValueError(f"{VECTORS_FILE} is not of {manifest.count:,} vectors")
    except (RetrievalError, OSError, ValueError) as error:
        vectors = []
        found.note(f"vectors: {error}", False)
    if manifest.lexical:
        _check_lexical(found, index, again)
    if vectors:
        _check_vectors(found, vectors)
    name = encoder or manifest.encoder
    try:
        check_encoder(manifest, index, name)
        if found.problems:
            found.note("sample: not looked at, for something else is wrong")
            return found
        approximate = manifest.factory != FLAT
        search = read_vectors(manifest, index, again, threads) if approximate else None
        model = Encoder(
            name,
            threads=threads,
            device=device,
            **manifest.encoder_settings(),
        )
        with open_passages(manifest, index, corpus, again) as store:
            sample = embed_sample(store, model, manifest.passage_prefix, samples)
        _check_sample(found, vectors, search, sample)
    except RetrievalError as error:
        found.note(str(error), False)
    return found


def _check_lexical(found: IndexCheck, index: Path, again: str) -> None:
    try:
        LexicalIndex.open(index / LEXICAL_DIRECTORY, found.manifest.count, again)
        found.note(f"{LEXICAL_DIRECTORY}: {found.manifest.count:,} passages")
    except RetrievalError as error:
        found.note(str(error), False)


def _check_rows(found: IndexCheck, index: Path, scan: CorpusScan) -> None:
    """Offsets and text hashes are those of the corpus as it is, and so is the index's own copy of
    the text."""
    plain = index / PASSAGES_FILE
    if plain.is_file() and not np.array_equal(scan_corpus(plain).text_hashes, scan.text_hashes):
        found.note(f"{PASSAGES_FILE}: not the text of the corpus", False)
    for name, expected in ((OFFSETS_FILE, scan.offsets), (TEXT_HASHES_FILE, scan.text_hashes)):
        try:
            held = np.load(index / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            found.note(f"{name}: cannot be read ({error})", False)
            continue
        if len(held) != len(expected):
            found.note(f"{name}: {len(held):,} rows, the corpus has {len(expected):,}", False)
            continue
        wrong = np.flatnonzero(held != expected)
        if len(wrong):
            first = int(wrong[0]) + 1
            found.note(f"{name}: {len(wrong):,} rows are not the corpus's (line {first})", False)
        else:
            found.note(f"{name}: every line of the corpus is where it says")


def _note_duplicates(found: IndexCheck, scan: CorpusScan) -> None:
    """Passages of the same text take places in the top k from others: said, not refused."""
    order = np.argsort(scan.text_hashes, kind="stable")
    hashes = scan.text_hashes[order]
    again = np.flatnonzero(hashes[1:] == hashes[:-1])
    if not len(again):
        found.note("duplicates: none")
        return
    pairs = ", ".join(f"lines {order[i] + 1} and {order[i + 1] + 1}" for i in again[:_SHOWN])
    found.note(f"duplicates: {len(again):,} passages have the text of another ({pairs})")


def _check_vectors(found: IndexCheck, vectors: Sequence[tuple[int, np.ndarray]]) -> None:
    for start, block in _blocks(vectors):
        lengths = np.linalg.norm(block, axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH))  # NaN is not close to anything
        if len(bad):
            row = start + int(bad[0])
            found.note(
                f"vectors: row {row} has length {lengths[bad[0]]:.4g}, not 1: build it again",
                False,
            )
            return
    found.note("vectors: all finite, of length 1")


def _blocks(vectors: Sequence[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    for first, part in vectors:
        for start in range(0, len(part), _ROWS):
            yield first + start, np.asarray(part[start : start + _ROWS])


def _check_sample(
    found: IndexCheck,
    vectors: Sequence[tuple[int, np.ndarray]],
    search: VectorSearch | None,
    sample: Sample,
) -> None:
    """Stored ``vectors``, where there are some, and an approximate index, by ``search``."""
    apart = "index, corpus and encoder do not belong together; build it again with force=true"
    if vectors:
        cosines = sample.cosines(vectors)
        wrong = sample.wrong(cosines, imported=found.manifest.imported)
        if len(wrong):
            found.note(
                f"sample: {len(wrong)} of {len(sample)} stored vectors are not their passages' "
                f"(row {wrong[0]} first): {apart}",
                False,
            )
        else:
            found.note(
                f"sample: {len(sample)} passages embedded again, cosine to the stored vectors at "
                f"least {cosines.min():.5f}"
            )
    if search is not None:
        lost = sample.not_found(search, found.manifest.count)
        share = 1 - len(lost) / len(sample)
        said = f"sample: the index finds {share:.0%} of {len(sample)} passages by themselves"
        if share < ENOUGH_FOUND:
            found.note(f"{said} (row {lost[0]} is the first it does not): {apart}", False)
        else:
            found.note(said)
