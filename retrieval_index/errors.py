"""The errors of the retrieval component. Every message names the thing and the remedy."""

from __future__ import annotations

__all__ = [
    "CorpusError",
    "EncoderError",
    "IndexBuildError",
    "IndexMismatchError",
    "OverloadError",
    "QueryError",
    "RetrievalError",
    "ServerError",
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
