"""Gleaner's retrieval component: builds, searches and serves a dense index; usable alone.

    >>> from retrieval_index import DenseIndex, build_index

or ``python -m retrieval_index build|serve|query key=value ...``. It imports neither Ray nor the
pipeline; torch, FAISS and sentence-transformers are imported when they are first needed.
"""

from retrieval_index.build import build_index
from retrieval_index.client import RetrieveClient
from retrieval_index.errors import RetrievalError
from retrieval_index.index import DenseIndex, Hit
from retrieval_index.manifest import Manifest

__all__ = ["DenseIndex", "Hit", "Manifest", "RetrievalError", "RetrieveClient", "build_index"]
