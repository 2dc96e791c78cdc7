"""Do index, corpus and encoder belong together? Checked before a search, with the remedy.

Every function raises IndexMismatchError that says what differs and which command builds the
index again (``again``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.corpus import PassageStore
from retrieval_index.errors import CorpusError, IndexMismatchError, QueryError, faiss_reason
from retrieval_index.exact import ExactSearch
from retrieval_index.files import sha256_of
from retrieval_index.flat_file import read_flat
from retrieval_index.manifest import (
    FLAT,
    OFFSETS_FILE,
    PASSAGES_FILE,
    Manifest,
    ShardFile,
    build_command,
)
from retrieval_index.model_files import encoder_fingerprint, own_pooling, resolve_encoder
from retrieval_index.vector_search import (
    FaissSearch,
    ShardedSearch,
    VectorSearch,
    set_search_parameters,
)

__all__ = [
    "check_corpus",
    "check_encoder",
    "check_files",
    "check_fingerprint",
    "check_lexical",
    "check_prefixes",
    "check_shards",
    "open_passages",
    "read_vectors",
]


def check_corpus(manifest: Manifest, index: Path, corpus: Path, again: str) -> None:
    """Size and SHA-256 of the corpus file are those of the build (the latter is not computed while
    the file was not written since). CorpusError where it is gone."""
    if not corpus.is_file():
        raise CorpusError(
            f"{corpus}: no such corpus file, and index {index} needs it; name it with corpus="
        )
    status = corpus.stat()
    size = status.st_size
    if size != manifest.corpus_bytes:
        differs = f"{size:,} bytes, the index was built from {manifest.corpus_bytes:,}"
    elif status.st_mtime_ns == manifest.corpus_mtime_ns:
        return
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
    _check_same(manifest, index, {k: v for k, v in wanted.items() if v is not None})


def _check_same(manifest: Manifest, index: Path, wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        built = getattr(manifest, name)
        if value != built:
            again = _rebuild(manifest, index, **{name: value})
            raise IndexMismatchError(
                f"index {index} was built with {name}={built!r}, not {value!r}; use that, or "
                f"build it again: {again}"
            )


def check_shards(manifest: Manifest, index: Path, shards: int) -> None:
    """Actors that have a shard each find as many as there are; one actor may have all."""
    if shards not in (1, manifest.shards):
        has = "1 shard" if manifest.shards == 1 else f"{manifest.shards} shards"
        fits = "shards=1" if manifest.shards == 1 else f"shards={manifest.shards} or shards=1"
        raise IndexMismatchError(
            f"index {index} has {has}, {shards} are wanted; ask for {fits}, or build it again: "
            f"{_rebuild(manifest, index, shards=shards)}"
        )


def _rebuild(manifest: Manifest, index: Path, **changes: Any) -> str:
    """The command that makes this index again, but for ``changes``."""
    return replace(manifest, **changes).rebuild_command(index, index / manifest.corpus)


def check_lexical(manifest: Manifest, index: Path, corpus: Path) -> None:
    """There is a BM25 index for hybrid search."""
    if not manifest.lexical:
        again = replace(manifest, lexical=True).rebuild_command(index, corpus)
        raise IndexMismatchError(
            f"index {index} has no BM25 index for hybrid search; build it: {again}"
        )


def check_encoder(
    manifest: Manifest,
    index: Path,
    name: str,
    pooling: str | None = None,
    max_length: int | None = None,
) -> None:
    """The encoder's files are those of the build, and so are the settings that are given."""
    directory = resolve_encoder(name)
    own = own_pooling(directory)
    check_fingerprint(
        manifest,
        index,
        name,
        encoder_fingerprint(directory, **manifest.encoder_settings()),
    )
    wanted: dict[str, str | int] = {}
    if pooling is not None:
        wanted["pooling"] = pooling or own
    if max_length is not None:
        wanted["max_length"] = max_length
    _check_same(replace(manifest, pooling=manifest.pooling or own), index, wanted)


def check_fingerprint(manifest: Manifest, index: Path, name: str, fingerprint: str) -> None:
    """An encoder of this fingerprint made the index."""
    if fingerprint == manifest.encoder_fingerprint:
        return
    revision = f" at revision {manifest.revision}" if manifest.revision else ""
    raise IndexMismatchError(
        f"index {index} does not match encoder {name}: it was built with {manifest.encoder}"
        f"{revision} (fingerprint {manifest.encoder_fingerprint[:12]}..., not "
        f"{fingerprint[:12]}...); use that encoder, or build it again: "
        f"{build_command(index=index, encoder=name)}"
    )


def read_vectors(
    manifest: Manifest,
    index: Path,
    again: str,
    threads: int,
    search_parameters: str = "",
    shards: Collection[int] | None = None,
    device: str = "cpu",
) -> VectorSearch:
    """The index, whole and of the manifest's count and dimension, ready for search; of ``shards``
    alone where they are given. Memory-mapped; flat ones are searched exactly."""
    parts: list[tuple[int, VectorSearch]] = []
    for file, opened in _open_shards(manifest, index, again, shards):
        try:
            search = _searching(opened, threads, search_parameters, device)
        except (RuntimeError, ValueError) as error:
            raise _unreadable(index / file.name, error, again) from None
        parts.append((file.start, search))
    return parts[0][1] if manifest.shards == 1 else ShardedSearch(parts)


def check_files(manifest: Manifest, index: Path, again: str) -> None:
    """The index files are whole, and of the manifest's count and dimension."""
    for _ in _open_shards(manifest, index, again):
        pass


def _open_shards(
    manifest: Manifest, index: Path, again: str, shards: Collection[int] | None = None
) -> Iterator[tuple[ShardFile, Any]]:
    """Index files (of ``shards`` alone where they are given), memory-mapped: float32[n, d] of a
    flat one, else what FAISS makes of it."""
    files = manifest.shard_files()
    size = sum((index / f.name).stat().st_size for f in files if (index / f.name).is_file())
    if size != manifest.index_bytes:
        names = ", ".join(f.name for f in files)
        raise IndexMismatchError(
            f"{index}: {names}: {size:,} bytes, the manifest says {manifest.index_bytes:,}: a file "
            f"is missing or cut off; build it again: {again}"
        )
    for number, file in enumerate(files):
        if shards is not None and number not in shards:
            continue
        path = index / file.name
        opened: Any
        try:
            opened = read_flat(path) if manifest.factory == FLAT else _read_faiss(path)
        except (RuntimeError, ValueError) as error:
            raise _unreadable(path, error, again) from None
        is_flat = isinstance(opened, np.ndarray)
        count, dimension = opened.shape if is_flat else (opened.ntotal, opened.d)
        if (count, dimension) != (file.end - file.start, manifest.dimension):
            raise IndexMismatchError(
                f"{path}: {count} vectors of {dimension} dimensions, the manifest says "
                f"{file.end - file.start} of {manifest.dimension}; build it again: {again}"
            )
        yield file, opened


def _read_faiss(path: Path) -> Any:
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)  # pages that processes share


def _unreadable(path: Path, error: Exception, again: str) -> IndexMismatchError:
    return IndexMismatchError(
        f"{path}: cannot be read ({faiss_reason(error)}); build it again: {again}"
    )


def _searching(opened: Any, threads: int, search_parameters: str, device: str) -> VectorSearch:
    """Ready for search: exactly where it is flat; on a GPU where FAISS is built for it."""
    if isinstance(opened, np.ndarray):
        if search_parameters:
            raise QueryError(
                f"search_parameters={search_parameters}: a flat index has none, it is exact"
            )
        return ExactSearch(opened, device=device)
    import faiss

    if search_parameters:  # before a move, which takes them along: a GPU index has other classes
        set_search_parameters(opened, search_parameters)
    if device != "cpu" and hasattr(faiss, "StandardGpuResources"):
        opened = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, opened)
    return FaissSearch(opened, threads)


def open_passages(manifest: Manifest, index: Path, corpus: Path, again: str) -> PassageStore:
    """The passages: of ``corpus``, or of the index's own copy where the corpus is gzipped."""
    plain = index / PASSAGES_FILE
    text = plain if plain.is_file() else corpus
    offsets = index / OFFSETS_FILE
    try:
        store = PassageStore(text, offsets)
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
    if not store.is_whole:
        store.close()
        raise IndexMismatchError(
            f"{text}: {text.stat().st_size:,} bytes, its passages end elsewhere: it was cut off or "
            f"changed; build the index again: {again}"
        )
    return store
