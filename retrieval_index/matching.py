"""Do index, corpus and encoder belong together? Checked before a search, with the remedy.

Every function raises IndexMismatchError that says what differs and which command builds the
index again (``again``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval_index.corpus import PassageStore
from retrieval_index.errors import CorpusError, IndexMismatchError
from retrieval_index.files import sha256_of
from retrieval_index.manifest import (
    INDEX_FILE,
    OFFSETS_FILE,
    PASSAGES_FILE,
    Manifest,
    build_command,
)

__all__ = ["check_corpus", "check_encoder", "check_prefixes", "open_passages", "read_vectors"]


def check_corpus(manifest: Manifest, index: Path, corpus: Path, again: str) -> None:
    """Size and SHA-256 of the corpus file are those of the build. CorpusError where it is gone."""
    if not corpus.is_file():
        raise CorpusError(
            f"{corpus}: no such corpus file, and index {index} needs it; name it with corpus="
        )
    size = corpus.stat().st_size
    if size != manifest.corpus_bytes:
        differs = f"{size:,} bytes, the index was built from {manifest.corpus_bytes:,}"
    elif sha256_of(corpus) != manifest.corpus_sha256:
        differs = f"its checksum is not the {manifest.corpus_sha256[:12]}... of the manifest"
    else:
        return
    raise IndexMismatchError(
        f"index {index} does not match corpus {corpus}: {differs}; give the corpus it was built "
        f"from, or build it again: {again}"
    )


def check_prefixes(
    manifest: Manifest, index: Path, query_prefix: str | None, passage_prefix: str | None
) -> None:
    """Prefixes that are given are those of the build."""
    wanted = {"query_prefix": query_prefix, "passage_prefix": passage_prefix}
    for name, prefix in wanted.items():
        built = getattr(manifest, name)
        if prefix is not None and prefix != built:
            again = build_command(index=index, encoder=manifest.encoder, **{name: prefix})
            raise IndexMismatchError(
                f"index {index} was built with {name}={built!r}, not {prefix!r}; use that, or "
                f"build it again: {again}"
            )


def check_encoder(manifest: Manifest, index: Path, name: str, fingerprint: str) -> None:
    """The encoder's files are those of the build."""
    if fingerprint == manifest.encoder_fingerprint:
        return
    raise IndexMismatchError(
        f"index {index} does not match encoder {name}: it was built with {manifest.encoder} "
        f"(fingerprint {manifest.encoder_fingerprint[:12]}..., not {fingerprint[:12]}...); use "
        f"that encoder, or build it again: {build_command(index=index, encoder=name)}"
    )


def read_vectors(manifest: Manifest, index: Path, again: str) -> Any:
    """The FAISS index, whole and of the manifest's count and dimension."""
    import faiss

    path = index / INDEX_FILE
    size = path.stat().st_size if path.is_file() else 0
    if size != manifest.index_bytes:
        raise IndexMismatchError(
            f"{path}: {size:,} bytes, the manifest says {manifest.index_bytes:,}: the file is "
            f"missing or cut off; build it again: {again}"
        )
    try:
        opened = faiss.read_index(str(path))
    except RuntimeError as error:
        raise IndexMismatchError(
            f"{path}: FAISS cannot read it ({str(error)[:200]}); build it again: {again}"
        ) from None
    if (opened.ntotal, opened.d) != (manifest.count, manifest.dimension):
        raise IndexMismatchError(
            f"{path}: {opened.ntotal} vectors of {opened.d} dimensions, the manifest says "
            f"{manifest.count} of {manifest.dimension}; build it again: {again}"
        )
    return opened


def open_passages(manifest: Manifest, index: Path, corpus: Path, again: str) -> PassageStore:
    """The passages: of ``corpus``, or of the index's own copy where the corpus is gzipped."""
    plain = index / PASSAGES_FILE
    offsets = index / OFFSETS_FILE
    try:
        store = PassageStore(plain if plain.is_file() else corpus, offsets)
    except (OSError, ValueError) as error:
        raise IndexMismatchError(
            f"{offsets}: cannot be read ({error}); build the index again: {again}"
        ) from None
    if len(store) != manifest.count:
        store.close()
        raise IndexMismatchError(
            f"{offsets}: {len(store)} passages, the manifest says {manifest.count}; build the "
            f"index again: {again}"
        )
    return store
