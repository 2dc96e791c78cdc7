"""The manifest: what an index was made from, written last, checked when it is opened."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from retrieval_index.errors import IndexMismatchError
from retrieval_index.files import write_atomically

__all__ = [
    "FORMAT",
    "INDEX_FILE",
    "MANIFEST_FILE",
    "OFFSETS_FILE",
    "PASSAGES_FILE",
    "TEXT_HASHES_FILE",
    "Manifest",
    "build_command",
]

FORMAT = 1
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.faiss"
OFFSETS_FILE = "offsets.npy"  # int64[count + 1]
TEXT_HASHES_FILE = "text_hashes.npy"  # S16[count]
PASSAGES_FILE = "passages.jsonl"  # only where the corpus is gzipped: its text


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
    factory: str
    count: int
    corpus: str  # path, relative to the index directory where that is possible
    corpus_sha256: str
    corpus_bytes: int
    index_bytes: int  # of index.faiss: a shorter file was cut off
    versions: dict[str, str]
    created: str  # ISO 8601, UTC

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
            factory="" if self.factory == "Flat" else self.factory,
        )


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
