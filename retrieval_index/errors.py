"""The errors of the retrieval component. Every message names the thing and the remedy."""

from __future__ import annotations

import re

__all__ = [
    "CorpusError",
    "EncoderError",
    "IndexBuildError",
    "IndexMismatchError",
    "OverloadError",
    "QueryError",
    "RetrievalError",
    "ServerError",
    "faiss_reason",
    "unicode_problem",
]


class RetrievalError(Exception):
    """Base of every error that this package raises on purpose."""


class CorpusError(RetrievalError):
    """A corpus file is missing, empty or has a bad line."""


class EncoderError(RetrievalError):
    """An encoder cannot be found or loaded."""


class IndexBuildError(RetrievalError):
    """An index cannot be built or written."""


class IndexMismatchError(RetrievalError):
    """An index is missing, incomplete, or was made from another corpus or encoder."""


class QueryError(RetrievalError):
    """A query or ``top_k`` that cannot be searched for."""


class OverloadError(RetrievalError):
    """More queries wait than may."""


class ServerError(RetrievalError):
    """A server cannot start, or a remote one failed, refused or spoke another protocol."""


def faiss_reason(error: Exception) -> str:
    """FAISS's message without its place in the C++ code.

    >>> faiss_reason(RuntimeError("Error in A f(int) at /x/a.cpp:1: could not parse string Falt"))
    'could not parse string Falt'
    >>> faiss_reason(RuntimeError("Error in void f() at b.cpp:22: Error: 'n > 0' failed: too few"))
    'too few'
    """
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    said = re.sub(r"^Error in .* at \S+:\d+: ", "", last)
    return said.rpartition("failed: ")[2][:200]


def unicode_problem(text: str) -> str:
    """Why a text is not valid Unicode (half of a surrogate pair); empty: it is.

    >>> unicode_problem("so"), unicode_problem("s\\ud83d")
    ('', 'is not valid Unicode (character 1: surrogates not allowed)')
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not valid Unicode (character {error.start}: {error.reason})"
    return ""
