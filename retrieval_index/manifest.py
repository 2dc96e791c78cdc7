"""The manifest: what an index was made from, written last, checked when it is opened."""

from __future__ import annotations

import json
import shlex
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retrieval_index.errors import IndexMismatchError
from retrieval_index.files import write_atomically

__all__ = [
    "FLAT",
    "FORMAT",
    "INDEX_FILE",
    "MANIFEST_FILE",
    "OFFSETS_FILE",
    "PASSAGES_FILE",
    "TEXT_HASHES_FILE",
    "VECTORS_FILE",
    "Manifest",
    "ShardFile",
    "build_command",
    "shard_files",
]

FORMAT = 3
_READ = (1, 2)  # earlier formats: what they do not say has a default
FLAT = "Flat"  # the factory string of an exact index
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.faiss"  # of an index of several shards: index-0.faiss, index-1.faiss, ...
OFFSETS_FILE = "offsets.npy"  # int64[count + 1]
TEXT_HASHES_FILE = "text_hashes.npy"  # S16[count]
PASSAGES_FILE = "passages.jsonl"  # only where the corpus is gzipped or Parquet: its text
VECTORS_FILE = "vectors.faiss"  # a flat index: the vectors of an approximate one


@dataclass(frozen=True, slots=True)
class ShardFile:
    """An index file and its rows, ``start`` to ``end``."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that must agree between an index, its corpus and its encoder."""

    format: int
    encoder: str  # as it was named
    encoder_fingerprint: str
    dimension: int
    metric: str  # inner_product (of vectors of length 1: cosine similarity)
    query_prefix: str
    passage_prefix: str
    pooling: str = ""  # mean, cls, ...; empty: the model's own (of format 2)
    max_length: int = 0  # tokens of a text; 0: the model's own
    revision: str = ""  # commit of a hub model
    factory: str
    count: int
    corpus: str  # path, relative to the index directory where that is possible
    corpus_sha256: str
    corpus_bytes: int
    corpus_mtime_ns: int = 0  # of the corpus file; while it is that, the checksum is not computed
    shards: int = 1  # index files, each of a range of rows
    index_bytes: int  # of all index files: a shorter file was cut off
    vectors_bytes: int = 0  # of vectors.faiss; 0: there is none
    imported: bool = False  # the index file was made elsewhere
    lexical: bool = False  # there is a BM25 index, too
    versions: dict[str, str]
    created: str  # ISO 8601, UTC

    def encoder_settings(self) -> dict[str, Any]:
        """How the encoder reads texts, as ``Encoder`` takes it."""
        return {"pooling": self.pooling, "max_length": self.max_length}

    def shard_files(self) -> list[ShardFile]:
        """The index files and their rows, in order."""
        return shard_files(self.count, self.shards)

    def write(self, directory: Path) -> None:
        """Write ``manifest.json`` atomically."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        write_atomically(directory / MANIFEST_FILE, lambda file: file.write(text.encode()))

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises IndexMismatchError where there is no whole index or it is of another format."""
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise IndexMismatchError(
                f"{directory}: no index there (no {MANIFEST_FILE}); build it: "
                + build_command(index=directory)
            )
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IndexMismatchError(
                f"{path}: not valid JSON ({error}); build the index again: "
                + build_command(index=directory)
            ) from None
        if isinstance(row, dict) and row.get("format") in _READ:
            since = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
            row = {**since, **row, "format": FORMAT}
        names = {field.name for field in fields(cls)}
        if not isinstance(row, dict) or row.get("format") != FORMAT or set(row) != names:
            raise IndexMismatchError(
                f"{path}: not a manifest of format {FORMAT}; build the index again: "
                + build_command(index=directory)
            )
        return cls(**row)

    def rebuild_command(self, index: Path, corpus: Path) -> str:
        """The command line that makes this index again."""
        return build_command(
            index=index,
            corpus=corpus,
            encoder=self.encoder,
            query_prefix=self.query_prefix,
            passage_prefix=self.passage_prefix,
            pooling=self.pooling,
            max_length=self.max_length or "",
            factory="" if self.imported or self.factory == FLAT else self.factory,
            lexical="true" if self.lexical else "",
            shards="" if self.shards == 1 else self.shards,
        )


def shard_files(count: int, shards: int) -> list[ShardFile]:
    """Rows are split evenly.

    >>> [(s.name, s.start, s.end) for s in shard_files(10, 3)]
    [('index-0.faiss', 0, 3), ('index-1.faiss', 3, 6), ('index-2.faiss', 6, 10)]
    >>> shard_files(10, 1)
    [ShardFile(name='index.faiss', start=0, end=10)]
    """
    if shards == 1:
        return [ShardFile(INDEX_FILE, 0, count)]
    stem, _, ending = INDEX_FILE.partition(".")
    return [
        ShardFile(f"{stem}-{n}.{ending}", count * n // shards, count * (n + 1) // shards)
        for n in range(shards)
    ]


def build_command(**arguments: object) -> str:
    """The command that builds an index; what is not given is shown as ``...``.

    >>> build_command(index="data/index", encoder="intfloat/e5-base-v2", query_prefix="query: ")
    "python -m retrieval_index build corpus=... index=data/index encoder=intfloat/e5-base-v2 \
query_prefix='query: '"
    """
    shown = {"corpus": "...", "index": "...", "encoder": "...", **arguments}
    words = [f"{key}={_quoted(str(value))}" for key, value in shown.items() if str(value)]
    return " ".join(["python -m retrieval_index build", *words])


def _quoted(value: str) -> str:
    return value if value == "..." else shlex.quote(value)
