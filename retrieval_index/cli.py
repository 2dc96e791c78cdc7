"""The command line: ``python -m retrieval_index COMMAND key=value ...``."""

from __future__ import annotations

import difflib
import inspect
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval_index.cli_help import help_of
from retrieval_index.errors import IndexMismatchError, QueryError, RetrievalError
from retrieval_index.manifest import FLAT, Manifest

__all__ = ["main"]

_USAGE = """usage: python -m retrieval_index COMMAND key=value ...

  build  corpus=FILE index=DIR encoder=NAME   embed a corpus and write its index
  import index_file=FILE corpus=FILE index=DIR encoder=NAME
                                              take over a FAISS file that was made elsewhere
  check  index=DIR                            whether it is whole; recall where it approximates
  recommend corpus=FILE encoder=NAME          which factory for this size and memory
  serve  index=DIR                            answer POST /retrieve
  query  TEXT index=DIR                       show the passages nearest to TEXT

python -m retrieval_index COMMAND --help lists the keys of a command."""


class UsageError(RetrievalError):
    """A command line that cannot be understood."""


def build(
    *,
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
    device: str = "cpu",
    keep_vectors: bool = True,
    lexical: bool = False,
    shards: int = 1,
    force: bool = False,
) -> None:
    """Embed a corpus and write its index; a killed build goes on where it was. force: all of it
    anew, also where the index seems to be up to date."""
    from retrieval_index.build import build_index

    manifest = build_index(
        corpus,
        index,
        encoder,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        pooling=pooling,
        max_length=max_length,
        factory=factory,
        batch_size=batch_size,
        threads=threads,
        workers=workers,
        device=device,
        keep_vectors=keep_vectors,
        lexical=lexical,
        shards=shards,
        force=force,
    )
    print(f"{index}: {manifest.count:,} passages x {manifest.dimension}, {manifest.factory}, ready")


def take_over(
    *,
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
) -> None:
    """Make an index directory of a FAISS file and its corpus; a sample is embedded and compared.
    The file is linked to, not copied."""
    from retrieval_index.take_over import import_index

    manifest = import_index(
        index_file,
        corpus,
        index,
        encoder,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        pooling=pooling,
        max_length=max_length,
        samples=samples,
        threads=threads,
        device=device,
    )
    print(f"{index}: {manifest.count:,} passages x {manifest.dimension}, {manifest.factory}, ready")


def check(
    *,
    index: Path,
    corpus: Path | None = None,
    encoder: str | None = None,
    samples: int = 64,
    queries: Path | None = None,
    top_k: int = 10,
    picture: Path | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Whether corpus, index and manifest are whole and belong together; of an approximate index
    recall and time by its run-time parameter (queries: a file of one a line; picture: a PNG)."""
    from retrieval_index.check import check_index

    asked = _lines_of(queries) if queries is not None else []
    found = check_index(index, corpus, encoder, samples, threads, device)
    for line in found.notes:
        print(line)
    if found.problems:
        raise IndexMismatchError("\n       ".join(found.problems))
    if found.manifest.vectors_bytes:
        _check_recall(found.manifest, index, corpus, encoder, asked, top_k, picture, threads)
    else:
        exact = found.manifest.factory == FLAT
        why = "exact" if exact else "imported, or built with keep_vectors=false"
        print(f"recall: not measured, for the index is {why}")
    print("all is well")


def _lines_of(queries: Path) -> list[str]:
    try:
        lines = queries.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"queries={queries}: cannot be read ({error})") from None
    return [line for line in lines if line.strip()]


def _check_recall(
    manifest: Manifest,
    index: Path,
    corpus: Path | None,
    encoder: str | None,
    queries: Sequence[str],
    top_k: int,
    picture: Path | None,
    threads: int,
) -> None:
    from retrieval_index.encoder import Encoder
    from retrieval_index.matching import open_passages
    from retrieval_index.recall import draw_recall, measure_recall

    model = Encoder(
        encoder or manifest.encoder,
        threads=threads,
        **manifest.encoder_settings(),
    )
    with open_passages(manifest, index, corpus or index / manifest.corpus, "") as store:
        points = measure_recall(index, store, model, queries, top_k)
    for p in points:
        print(f"recall at {top_k}, {p.parameters}: {p.recall:.3f}, {p.ms:.2f} ms a query")
    if picture is not None:
        title = f"{manifest.factory}, {manifest.count:,} passages x {manifest.dimension}"
        draw_recall(points, title, top_k, picture)
        print(f"picture: {picture}")


def recommend(*, corpus: Path, encoder: str, memory_gib: float = 0.0) -> None:
    """Which factory for a corpus of this size; memory_gib 0: this machine's."""
    from retrieval_index.corpus import scan_corpus
    from retrieval_index.model_files import encoder_dimension
    from retrieval_index.recommend import memory_bytes
    from retrieval_index.recommend import recommend as choose

    if memory_gib < 0:
        raise UsageError(f"memory_gib={memory_gib:g}: must not be negative (0: this machine's)")
    memory = int(memory_gib * 2**30) or memory_bytes()
    count, dimension = scan_corpus(corpus).count, encoder_dimension(encoder)
    chosen = choose(count, dimension, memory)
    print(f"{count:,} passages x {dimension}, {memory / 2**30:.1f} GiB of memory")
    print(f"factory={chosen.factory}: {chosen.index_bytes / 2**30:.2f} GiB; {chosen.reason}")
    if chosen.search_parameters:
        print(f"search_parameters={chosen.search_parameters} to begin with; check draws the curve")


def serve(
    *,
    index: Path,
    corpus: Path | None = None,
    encoder: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int = 1,
    batch_size: int = 32,
    max_batch_wait_ms: float = 2.0,
    max_queries: int = 4096,
    max_topk: int = 1000,
    max_waiting: int = 16_384,
    timeout_s: float = 60.0,
    cache_size: int = 50_000,
    device: str = "cpu",
    search_parameters: str = "",
    hybrid: bool = False,
    reranker: str = "",
    depth: int = 50,
) -> None:
    """Answer POST /retrieve, GET /health and GET /metrics until interrupted. Clients must send the
    bearer token of GLEANER_RETRIEVAL_TOKEN where that is set; off loopback it must be."""
    from retrieval_index.http_guard import RequestLimits, required_token
    from retrieval_index.index import DenseIndex
    from retrieval_index.server import open_socket
    from retrieval_index.server import serve as run

    if batch_size < 1 or cache_size < 0:
        raise UsageError(
            f"batch_size={batch_size} cache_size={cache_size}: a batch has at least one query, "
            "and a cache 0 or more"
        )
    token = required_token(host)
    limits = RequestLimits(
        max_queries=max_queries, max_topk=max_topk, max_waiting=max_waiting, timeout_s=timeout_s
    )
    with (
        open_socket(host, port) as listening,
        DenseIndex.open(
            index,
            corpus,
            encoder,
            threads,
            batch_size=batch_size,
            cache_size=cache_size,
            device=device,
            search_parameters=search_parameters,
            hybrid=hybrid,
            reranker=reranker,
            depth=depth,
        ) as opened,
    ):
        address = f"http://{host}:{listening.getsockname()[1]}"
        print(f"{len(opened):,} passages on {address}/retrieve", flush=True)
        run(
            opened,
            listening,
            batch_size=batch_size,
            max_batch_wait_ms=max_batch_wait_ms,
            token=token,
            limits=limits,
        )


def query(
    text: str,
    *,
    index: Path,
    corpus: Path | None = None,
    encoder: str | None = None,
    top_k: int = 3,
    threads: int = 1,
    device: str = "cpu",
    search_parameters: str = "",
    hybrid: bool = False,
    reranker: str = "",
    depth: int = 50,
) -> None:
    """Show the passages nearest to a text."""
    from retrieval_index.index import DenseIndex

    with DenseIndex.open(
        index,
        corpus,
        encoder,
        threads,
        device=device,
        search_parameters=search_parameters,
        hybrid=hybrid,
        reranker=reranker,
        depth=depth,
    ) as opened:
        width = min(_WIDEST, shutil.get_terminal_size().columns)
        for rank, hit in enumerate(opened.search([text], top_k)[0], start=1):
            print(f"{rank}. {hit.title}  [id {hit.doc_id}, score {hit.score:.3f}]")
            print(textwrap.fill(hit.text, width, initial_indent="   ", subsequent_indent="   "))


_WIDEST = 100  # columns of text
_COMMANDS: dict[str, Callable[..., None]] = {
    "build": build,
    "import": take_over,
    "check": check,
    "recommend": recommend,
    "serve": serve,
    "query": query,
}


def main(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code is 2 for a user's error, 130 when interrupted."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE)
        return 0 if arguments else 2
    try:
        command = _command(arguments[0])
        if "--help" in arguments or "-h" in arguments:
            print(help_of(arguments[0], command))
            return 0
        positional, keys = _parsed(arguments[0], command, arguments[1:])
        command(*positional, **keys)
    except RetrievalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _command(name: str) -> Callable[..., None]:
    if name not in _COMMANDS:
        raise UsageError(f"unknown command {name!r}; commands: {', '.join(_COMMANDS)}")
    return _COMMANDS[name]


def _parsed(
    name: str, command: Callable[..., None], words: Sequence[str]
) -> tuple[list[str], dict[str, object]]:
    """Positional texts and typed keys for a command. Raises UsageError."""
    parameters = inspect.signature(command).parameters
    types = typing.get_type_hints(command)
    num_texts = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    texts: list[str] = []
    keys: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if len(texts) < num_texts and not (equals and key in parameters):
            texts.append(word)
        elif not equals:
            raise UsageError(f"{word!r}: expected key=value; see {name} --help")
        elif key not in parameters:
            raise UsageError(
                f"unknown key {key!r}{_hint(key, list(parameters))}; see {name} --help"
            )
        else:
            keys[key] = _typed(key, value, types[key])
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY and p.name not in keys
    ]
    if len(texts) < num_texts:
        required.insert(0, "TEXT")
    if required:
        raise UsageError(f"{name} needs {', '.join(required)}; see {name} --help")
    return texts, keys


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _typed(key: str, value: str, wanted: object) -> object:
    options = [t for t in typing.get_args(wanted) if t is not type(None)] or [wanted]
    if options[0] is bool:
        if value.lower() not in ("true", "false"):
            raise UsageError(f"{key}={value}: must be true or false")
        return value.lower() == "true"
    kind = typing.cast(Callable[[str], object], options[0])
    try:
        return kind(value)
    except ValueError:
        name = {int: "a whole number", float: "a number"}.get(options[0], "valid")
        raise UsageError(f"{key}={value}: must be {name}") from None
