"""The command line: ``python -m retrieval_index build|serve|query key=value ...``."""

from __future__ import annotations

import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval_index.errors import RetrievalError

__all__ = ["main"]

_USAGE = """usage: python -m retrieval_index COMMAND key=value ...

  build  corpus=FILE index=DIR encoder=NAME   embed a corpus and write its index
  serve  index=DIR                            answer POST /retrieve, GET /health
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
    factory: str = "Flat",
    batch_size: int = 64,
    threads: int = 1,
    workers: int = 1,
    device: str = "cpu",
) -> None:
    """Embed a corpus and write its index; a killed build goes on where it was."""
    from retrieval_index.build import build_index

    manifest = build_index(
        corpus,
        index,
        encoder,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        factory=factory,
        batch_size=batch_size,
        threads=threads,
        workers=workers,
        device=device,
    )
    print(f"{index}: {manifest.count:,} passages x {manifest.dimension}, {manifest.factory}, ready")


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
    device: str = "cpu",
) -> None:
    """Answer POST /retrieve and GET /health until interrupted."""
    from retrieval_index.index import DenseIndex
    from retrieval_index.server import open_socket
    from retrieval_index.server import serve as run

    with (
        open_socket(host, port) as listening,
        DenseIndex.open(
            index, corpus, encoder, threads, batch_size=batch_size, device=device
        ) as opened,
    ):
        address = f"http://{host}:{listening.getsockname()[1]}"
        print(f"{len(opened):,} passages on {address}/retrieve", flush=True)
        run(opened, listening, batch_size=batch_size, max_batch_wait_ms=max_batch_wait_ms)


def query(
    text: str,
    *,
    index: Path,
    corpus: Path | None = None,
    encoder: str | None = None,
    top_k: int = 3,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Show the passages nearest to a text."""
    from retrieval_index.index import DenseIndex

    with DenseIndex.open(index, corpus, encoder, threads, device=device) as opened:
        for rank, hit in enumerate(opened.search([text], top_k)[0], start=1):
            print(f"{rank}. {hit.title}  [id {hit.doc_id}, score {hit.score:.3f}]\n   {hit.text}")


_COMMANDS: dict[str, Callable[..., None]] = {"build": build, "serve": serve, "query": query}


def main(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code is 2 for a user's error, 130 when interrupted."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE)
        return 0 if arguments else 2
    try:
        command = _command(arguments[0])
        if "--help" in arguments or "-h" in arguments:
            print(_help(arguments[0], command))
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
    kind = typing.cast(Callable[[str], object], options[0])
    try:
        return kind(value)
    except ValueError:
        name = {int: "a whole number", float: "a number"}.get(options[0], "valid")
        raise UsageError(f"{key}={value}: must be {name}") from None


def _help(name: str, command: Callable[..., None]) -> str:
    lines = [f"python -m retrieval_index {name}: {inspect.getdoc(command)}", ""]
    for p in inspect.signature(command).parameters.values():
        if p.kind is p.POSITIONAL_OR_KEYWORD:
            lines.append(f"  {p.name.upper()}")
        else:
            default = "(required)" if p.default is p.empty else f"(default: {p.default!r})"
            lines.append(f"  {p.name}=...  {default}")
    return "\n".join(lines)
