"""The corpus: a streaming reader of the field's JSONL format, and random access to its lines.

One line is ``{"id": "0", "contents": "\\"Title\\"\\nText"}``; the first line of ``contents`` is the
title, in quotes. A file whose name ends in ``.gz`` is gzipped, one in ``.parquet`` has the columns
``id`` and ``contents``: it is read as the lines that it would be. Row ``n`` of an index is line
``n`` of its corpus (counted from 0; messages count lines from 1, as editors do).
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from retrieval_index.cache import LruCache
from retrieval_index.errors import CorpusError, unicode_problem
from retrieval_index.files import sha256_of
from retrieval_index.progress import PassageProgress

__all__ = [
    "CorpusScan",
    "PassageStore",
    "StoredPassage",
    "is_plain",
    "read_corpus",
    "scan_corpus",
    "write_plain_text",
]

TEXT_HASH_BYTES = 16
_SHOWN_EVERY = 10_000  # passages of a scan
_PARQUET_ROWS = 4096  # in memory at a time
_LINE_SHAPE = '{"id": "0", "contents": "\\"Title\\"\\nText"}'


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """One line of a corpus. ``contents`` is verbatim: the title's line, then the text."""

    doc_id: str
    contents: str

    @property
    def title(self) -> str:
        """The first line without its quotes.

        >>> StoredPassage("7", '"Paris"\\nParis is the capital of France.').title
        'Paris'
        """
        line = self.contents.partition("\n")[0].strip()
        quoted = len(line) >= 2 and line[0] == line[-1] == '"'
        return line[1:-1] if quoted else line

    @property
    def text(self) -> str:
        """Everything after the title's line."""
        return self.contents.partition("\n")[2]


def is_plain(path: Path) -> bool:
    """Whether lines can be read from the file as it is; of others an index keeps the text."""
    return path.suffix not in (".gz", ".parquet")


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _parse(line: bytes, where: str) -> StoredPassage:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSON, UTF-8, a number of thousands of digits
        raise CorpusError(
            f"{where}: not valid JSON ({error}); each line must be one object like {_LINE_SHAPE}"
        ) from None
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: not a JSON object; each line must be like {_LINE_SHAPE}")
    for key in ("id", "contents"):
        if key not in row:
            found = ", ".join(map(repr, row)) or "none"
            raise CorpusError(f"{where}: key {key!r} is missing (keys: {found}); add it")
    doc_id, contents = row["id"], row["contents"]
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        doc_id = str(doc_id)
    if not isinstance(doc_id, str) or not doc_id:
        raise CorpusError(f"{where}: 'id' must be a non-empty string, got {row['id']!r}")
    if not isinstance(contents, str) or not contents.strip():
        raise CorpusError(f"{where}: 'contents' must be a non-empty string")
    for key, value in (("id", doc_id), ("contents", contents)):
        if problem := unicode_problem(value):
            raise CorpusError(f"{where}: {key!r} {problem}")
    return StoredPassage(doc_id, contents)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises CorpusError where the system does not let the file be read."""
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error})") from None


def _lines(path: Path) -> Iterator[bytes]:
    """Raw lines with their ends. Raises CorpusError on a broken gzip stream or Parquet file."""
    with _reading(path):
        if not path.is_file():
            raise CorpusError(
                f"{path}: no such corpus file; give a JSONL file of lines {_LINE_SHAPE}"
            )
        if path.suffix == ".parquet":
            yield from _lines_of_parquet(path)
            return
        with _open(path) as file:
            try:
                yield from file
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise CorpusError(
                    f"{path}: broken gzip file ({error}); fetch or compress it again"
                ) from None


def _lines_of_parquet(path: Path) -> Iterator[bytes]:
    """The rows as lines of JSON, some thousands in memory at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CorpusError(
            f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or write it as JSONL"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            missing = {"id", "contents"} - set(file.schema_arrow.names)
            if missing:
                raise CorpusError(
                    f"{path}: no column {', '.join(sorted(missing))} (columns: "
                    f"{', '.join(file.schema_arrow.names)}); a corpus has id and contents"
                )
            _check_types(path, file.schema_arrow)
            for batch in file.iter_batches(_PARQUET_ROWS, columns=["id", "contents"]):
                for row in batch.to_pylist():
                    yield json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{path}: broken Parquet file ({str(error)[:200]}); fetch or write it again"
        ) from None


def _check_types(path: Path, schema: Any) -> None:
    """Texts in both columns; ids may be whole numbers."""
    from pyarrow import types

    for name in ("id", "contents"):
        kind = schema.field(name).type
        held = kind.value_type if types.is_dictionary(kind) else kind
        is_text = types.is_string(held) or types.is_large_string(held) or types.is_string_view(held)
        if not is_text and not (name == "id" and types.is_integer(held)):
            wanted = "strings or whole numbers" if name == "id" else "strings"
            raise CorpusError(f"{path}: column {name} holds {kind}; it must hold {wanted}")


def write_plain_text(path: Path, file: BinaryIO) -> None:
    """Copy the uncompressed bytes of a corpus to ``file``."""
    for line in _lines(path):
        file.write(line)


def read_corpus(path: Path) -> Iterator[StoredPassage]:
    """The passages of a corpus file in order, one in memory at a time.

    Blank lines are refused, since they would shift rows against lines.
    Raises CorpusError with file and line on broken JSON or a missing or mistyped key.
    Duplicate ids are found by ``scan_corpus``, which sees the whole file.
    """
    path = Path(path)
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            raise CorpusError(f"{path}, line {number}: blank line; remove it")
        yield _parse(line, f"{path}, line {number}")


@dataclass(frozen=True, slots=True)
class CorpusScan:
    """What one pass over a corpus finds.

    ``offsets`` int64[count + 1]: byte where each line starts (and the end), of the uncompressed
    text; ``text_hashes`` S16[count]: BLAKE2b of each passage's ``contents``.
    """

    sha256: str
    num_bytes: int  # of the file as it lies on disk
    mtime_ns: int  # when it was last written
    count: int
    offsets: np.ndarray
    text_hashes: np.ndarray


def scan_corpus(path: Path, *, progress: bool = False) -> CorpusScan:
    """Check every line of a corpus and find where it starts; ``progress`` is shown.

    Costs 32 bytes of memory a passage. Raises CorpusError on a bad line, a duplicate id (naming
    both lines) and an empty file.
    """
    path = Path(path)
    with _reading(path):
        mtime_ns = path.stat().st_mtime_ns if path.is_file() else 0
    starts, ids, hashes = array("q", [0]), array("Q"), bytearray()
    with PassageProgress("scan", None, enabled=progress, brief=True) as shown:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                raise CorpusError(f"{path}, line {number}: blank line; remove it")
            passage = _parse(line, f"{path}, line {number}")
            starts.append(starts[-1] + len(line))
            ids.append(_id_key(passage.doc_id))
            hashes += blake2b(passage.contents.encode(), digest_size=TEXT_HASH_BYTES).digest()
            if number % _SHOWN_EVERY == 0:
                shown.advance(_SHOWN_EVERY)
    if not ids:
        raise CorpusError(f"{path}: the corpus is empty; it needs at least one line {_LINE_SHAPE}")
    _refuse_duplicate_ids(path, np.frombuffer(ids, dtype=np.uint64))
    with _reading(path):
        sha256, num_bytes = sha256_of(path), path.stat().st_size
    return CorpusScan(
        sha256=sha256,
        num_bytes=num_bytes,
        mtime_ns=mtime_ns,
        count=len(ids),
        offsets=np.array(starts, dtype=np.int64),
        text_hashes=np.frombuffer(bytes(hashes), dtype=f"S{TEXT_HASH_BYTES}"),
    )


def _id_key(doc_id: str) -> int:
    return int.from_bytes(blake2b(doc_id.encode(), digest_size=8).digest(), "little")


def _refuse_duplicate_ids(path: Path, keys: np.ndarray) -> None:
    """Equal 64-bit keys are looked at again by their full ids, in a second pass."""
    ordered = np.sort(keys)
    repeated = {int(key) for key in ordered[1:][ordered[1:] == ordered[:-1]]}
    if not repeated:
        return
    first_line: dict[str, int] = {}
    for number, passage in enumerate(read_corpus(path), start=1):
        if _id_key(passage.doc_id) not in repeated:
            continue
        earlier = first_line.setdefault(passage.doc_id, number)
        if earlier != number:
            raise CorpusError(
                f"{path}, line {number}: id {passage.doc_id!r} was used in line {earlier} already; "
                "ids must be unique"
            )


class PassageStore:
    """Random access to the lines of an uncompressed corpus file.

    The offsets (int64[count + 1], a ``.npy`` file) are memory-mapped, so a store of any size costs
    little memory, and a passage costs one read. The last ``cache_size`` passages are kept.
    Use it from one thread at a time.
    """

    def __init__(self, corpus: Path, offsets: Path, cache_size: int = 16384) -> None:
        if not is_plain(Path(corpus)):
            raise CorpusError(f"{corpus}: no random access to its lines; give it as plain JSONL")
        self.corpus = Path(corpus)
        self.offsets = Path(offsets)
        self._offsets = np.load(offsets, mmap_mode="r", allow_pickle=False)
        self._file = Path(corpus).open("rb")  # noqa: SIM115 (closed by close())
        self._cache: LruCache[int, StoredPassage] = LruCache(cache_size)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def is_whole(self) -> bool:
        """Whether the file ends where its last line does."""
        return os.fstat(self._file.fileno()).st_size == self._offsets[-1]

    def __getitem__(self, row: int) -> StoredPassage:
        """The passage of a row. Raises IndexError outside the corpus."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a corpus of {len(self)} passages")
        cached = self._cache.get(row)
        if cached is not None:
            return cached
        passage = self._read(row)
        self._cache.put(row, passage)
        return passage

    def _read(self, row: int) -> StoredPassage:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        line = os.pread(self._file.fileno(), end - start, start)
        return _parse(line, f"{self.corpus}, line {row + 1}")

    def close(self) -> None:
        """Close the corpus file."""
        self._file.close()

    def __enter__(self) -> PassageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
