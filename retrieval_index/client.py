"""HTTP client for any ``/retrieve`` endpoint: this package's, Search-R1's, verl's, slime's."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from retrieval_index.errors import ServerError
from retrieval_index.http_guard import TOKEN_VARIABLE
from retrieval_index.index import Hit, SearchStats
from retrieval_index.protocol import parse_response, request_body

__all__ = ["RetrieveClient"]

_QUERIES = 256  # a request: servers have limits


class RetrieveClient:
    """Searches through HTTP; returns the same hits as ``DenseIndex.search``.

    ``url`` may be a server's root or its ``/retrieve``. ``token`` is sent as a bearer token; None:
    that of ``GLEANER_RETRIEVAL_TOKEN``, where it is set.
    """

    def __init__(self, url: str, timeout_s: float = 60.0, token: str | None = None) -> None:
        import httpx

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ServerError(
                f"{url!r}: not an HTTP address; give one like http://127.0.0.1:8000/retrieve"
            )
        stem = url.rstrip("/")
        self.url = stem if stem.endswith("/retrieve") else f"{stem}/retrieve"
        self.stats = SearchStats()
        self._timeout_s = timeout_s
        token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(timeout=timeout_s, trust_env=False, headers=headers)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """The hits of each query, best first.

        Raises ServerError where the server cannot be reached, is too slow, refuses, or answers
        something else than the protocol.
        """
        started = time.monotonic()
        self.stats.queries += len(queries)
        found = []
        try:
            for start in range(0, len(queries), _QUERIES):
                part = queries[start : start + _QUERIES]
                answer = self._post(request_body(part, top_k))
                found += parse_response(answer, len(part), self.url)
        finally:
            self.stats.busy_s += time.monotonic() - started
        return found

    def _post(self, body: dict[str, Any]) -> Any:
        import httpx

        try:
            response = self._http.post(self.url, json=body)
            response.raise_for_status()
            return response.json()
        except httpx.TimeoutException:
            raise ServerError(f"{self.url}: no answer within {self._timeout_s:g} s") from None
        except httpx.HTTPStatusError as error:
            reason = error.response.text[:200]
            raise ServerError(f"{self.url}: HTTP {error.response.status_code}: {reason}") from None
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.url}: cannot be reached ({error}); is the server up?"
            ) from None
        except ValueError:
            raise ServerError(
                f"{self.url}: the answer is not JSON; is it a /retrieve server?"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> RetrieveClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
