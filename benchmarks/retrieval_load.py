"""Agents that ask a ``/retrieve`` server, each over a connection of its own, one query at a time.

A process of its own, and no HTTP library: what the client costs is taken from the cores that the
server works on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

__all__ = ["ask_all"]


def ask_all(url: str, queries: Sequence[Sequence[str]], top_k: int) -> tuple[float, list[float]]:
    """``(seconds in all, seconds of each request)``; ``queries[i]`` are agent i's, in order."""
    return asyncio.run(_ask_all(url, queries, top_k))


async def _ask_all(
    url: str, queries: Sequence[Sequence[str]], top_k: int
) -> tuple[float, list[float]]:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        agents = [group.create_task(_agent(url, own, top_k)) for own in queries]
    return time.perf_counter() - began, [s for agent in agents for s in agent.result()]


async def _agent(url: str, queries: Sequence[str], top_k: int) -> list[float]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    took_s = []
    for query in queries:
        body = json.dumps({"queries": [query], "topk": top_k, "return_scores": True}).encode()
        began = time.perf_counter()
        writer.write(
            f"POST /retrieve HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = await _read(reader)
        took_s.append(time.perf_counter() - began)
        if len(json.loads(answer)["result"][0]) != top_k:
            raise RuntimeError(f"{url}: not {top_k} passages for {query!r}: {answer[:200]!r}")
    writer.close()
    return took_s


async def _read(reader: asyncio.StreamReader) -> bytes:
    """The body of an answer with a Content-Length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    status, _, headers = head.partition("\r\n")
    fields = dict(line.split(": ", 1) for line in headers.split("\r\n") if line)
    body = await reader.readexactly(int(fields["content-length"]))
    if " 200 " not in status:
        raise RuntimeError(f"{status}: {body[:200]!r}")
    return body
