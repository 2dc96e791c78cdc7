"""``make bench-retrieval``: our retrieval server and exact search against the plain ones.

    python -m benchmarks.retrieval [pairs=3] [rows=100000] [agents=32] [queries=20] [part=...]

One index of ``rows`` vectors: those of the default task's corpus by the real encoder, and mixtures
of two of them (a labelled stand-in, so that they lie as real ones do) up to ``rows``. Two parts:

- ``exact``: our search of a flat index against FAISS's ``IndexFlatIP`` in the same process, the
  same queries in batches of 1, 8 and 32; identical ids are required wherever scores differ by more
  than fp32 rounds.
- ``serve``: agents that each ask one query at a time, over HTTP, ours and the plain server
  (``benchmarks/retrieval_baseline.py``) in turn, each a process of its own with both cores. Once
  with distinct queries that nothing has seen, once as groups ask: every query by eight agents.

Results: ``benchmarks/results/retrieval.json``. Ratios are printed last.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import compare_in_turn, interval_of_median, write_benchmark
from benchmarks.retrieval_build import write_corpus
from benchmarks.retrieval_load import ask_all
from pipeline.commands import prepare
from pipeline.config_checks import to_config
from pipeline.overrides import compose_config
from pipeline.tasks.files import read_questions
from retrieval_index.corpus import read_corpus, scan_corpus
from retrieval_index.encoder import Encoder
from retrieval_index.exact import ExactSearch
from retrieval_index.manifest import INDEX_FILE, OFFSETS_FILE, Manifest

TOP_K = 3
GROUP_SIZE = 8
BATCHES = (1, 8, 32)
ROUNDING = 1e-5  # of fp32 scores: rows closer than this may change places
START_LIMIT_S = 180.0
CORES = len(os.sched_getaffinity(0))


def stand_in_vectors(real: np.ndarray, rows: int) -> np.ndarray:
    """float32[rows, d] of length 1: the real ones, then sums of two of them."""
    if rows <= len(real):
        return np.ascontiguousarray(real[:rows])
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(real), (2, rows - len(real)))
    share = rng.uniform(0.3, 0.7, (rows - len(real), 1)).astype(np.float32)
    mixed = share * real[pairs[0]] + (1 - share) * real[pairs[1]]
    return np.concatenate([real, mixed / np.linalg.norm(mixed, axis=1, keepdims=True)])


def write_index(directory: Path, task_index: Path, rows: int) -> np.ndarray:
    """An index of ``rows`` vectors over the task's texts, repeated; returns its vectors."""
    import faiss

    manifest = Manifest.read(task_index)
    flat = faiss.read_index(str(task_index / INDEX_FILE))
    vectors = stand_in_vectors(flat.reconstruct_n(0, flat.ntotal), rows)
    texts = [p.contents for p in read_corpus(task_index / manifest.corpus)]
    corpus = directory / "corpus.jsonl"
    write_corpus(corpus, texts, rows)
    scan = scan_corpus(corpus)
    np.save(directory / OFFSETS_FILE, scan.offsets)
    whole = faiss.IndexFlatIP(vectors.shape[1])
    whole.add(vectors)
    faiss.write_index(whole, str(directory / INDEX_FILE))
    replace(
        manifest,
        count=rows,
        corpus="corpus.jsonl",
        corpus_sha256=scan.sha256,
        corpus_bytes=scan.num_bytes,
        index_bytes=(directory / INDEX_FILE).stat().st_size,
    ).write(directory)
    return vectors


def compare_exact(vectors: np.ndarray, queries: np.ndarray, pairs: int) -> dict[str, Any]:
    """Milliseconds a query of ours and FAISS's by batch size, with one thread and with all."""
    import faiss
    import torch

    ours = ExactSearch(vectors)
    theirs = faiss.IndexFlatIP(vectors.shape[1])
    theirs.add(vectors)
    found: dict[str, Any] = {"dtype": ours.dtype, **compare_ids(ours, theirs, queries)}
    for threads in sorted({1, CORES}):
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        for batch in BATCHES:
            parts = [queries[i : i + batch] for i in range(0, 2 * max(BATCHES), batch)]
            times = compare_in_turn(
                functools.partial(_search_all, ours, parts),
                functools.partial(_search_all, theirs, parts),
                pairs=pairs,
            )
            found[f"threads {threads}, batch {batch}"] = {
                "ours_ms": 1000 * times["ours_s"] / (2 * max(BATCHES)),
                "theirs_ms": 1000 * times["theirs_s"] / (2 * max(BATCHES)),
                "ratio": times["ratio"],
            }
    return found


def _search_all(index: Any, parts: Sequence[np.ndarray]) -> None:
    for part in parts:
        index.search(part, TOP_K)


def compare_ids(ours: ExactSearch, theirs: Any, queries: np.ndarray) -> dict[str, int]:
    """``differing``: queries with other ids than FAISS's, of those whose scores are further apart
    than fp32 rounds; ``left_out``: the others."""
    scores, rows = ours.search(queries, TOP_K + 1)
    clear = (scores[:, :-1] - scores[:, 1:]).min(axis=1) > ROUNDING
    _, expected = theirs.search(queries, TOP_K)
    differing = (rows[clear, :TOP_K] != expected[clear]).any(axis=1)
    return {"differing": int(differing.sum()), "left_out": int((~clear).sum())}


@contextmanager
def served(command: Sequence[str], port: int) -> Iterator[str]:
    """A server process with both cores; its address."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen([sys.executable, *command], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    body = json.dumps({"queries": ["warm up"], "topk": 1, "return_scores": True}).encode()
    request = urllib.request.Request(f"{url}/retrieve", body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{url}: the server did not start") from None
            time.sleep(0.5)


def free_port() -> int:
    """One that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compare_servers(
    directory: Path, encoder: str, questions: Sequence[str], agents: int, queries: int, pairs: int
) -> dict[str, Any]:
    """Queries a second and p95 of both, by how agents ask."""
    ports = {"ours": free_port(), "theirs": free_port()}
    commands = {
        "ours": [
            "-m", "retrieval_index", "serve", f"index={directory}", f"port={ports['ours']}",
            f"threads={CORES}",
        ],
        "theirs": [
            "-m", "benchmarks.retrieval_baseline", str(directory), encoder, str(ports["theirs"]),
        ],
    }  # fmt: skip
    fresh = iter(questions)
    found: dict[str, Any] = {}
    with (
        served(commands["ours"], ports["ours"]) as ours,
        served(commands["theirs"], ports["theirs"]) as theirs,
    ):
        urls = {"ours": ours, "theirs": theirs}
        for way, sharing in (("distinct", 1), ("groups", GROUP_SIZE)):
            turns: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            for pair in range(pairs):
                for name in ("ours", "theirs") if pair % 2 == 0 else ("theirs", "ours"):
                    asked = _by_agent(fresh, agents, queries, sharing)
                    seconds, each = ask_all(urls[name], asked, TOP_K)
                    turn = {
                        "per_second": agents * queries / seconds,
                        "p50_ms": 1000 * float(np.quantile(each, 0.5)),
                        "p95_ms": 1000 * float(np.quantile(each, 0.95)),
                    }
                    turns[name].append(turn)
                    print(f"{way}, pair {pair + 1} of {pairs}, {name}: {turn['per_second']:.0f} "
                          f"queries/s, p95 {turn['p95_ms']:.0f} ms", flush=True)  # fmt: skip
            found[way] = _summary(turns)
    return found


def _by_agent(fresh: Iterator[str], agents: int, queries: int, sharing: int) -> list[list[str]]:
    """What each agent asks; ``sharing`` neighbours ask the same."""
    streams = [[next(fresh) for _ in range(queries)] for _ in range(agents // sharing)]
    return [streams[agent // sharing] for agent in range(agents // sharing * sharing)]


def _summary(turns: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    medians = {
        name: {key: statistics.median(t[key] for t in of) for key in of[0]}
        for name, of in turns.items()
    }
    ratios = [
        o["per_second"] / t["per_second"]
        for o, t in zip(turns["ours"], turns["theirs"], strict=True)
    ]
    low, high = interval_of_median(ratios)
    ratio = {"median": statistics.median(ratios), "low": low, "high": high}
    return {**medians, "ratio": ratio, "turns": turns}


def main(arguments: Sequence[str]) -> None:
    """Measure, write and print."""
    options = dict(a.split("=", 1) for a in arguments)
    pairs, rows = int(options.pop("pairs", "3")), int(options.pop("rows", "100000"))
    agents, queries = int(options.pop("agents", "32")), int(options.pop("queries", "20"))
    parts = options.pop("part", "exact,serve").split(",")
    if options:
        raise SystemExit(f"unknown: {', '.join(options)}; see the head of benchmarks/retrieval.py")
    config = to_config(compose_config(["experiment=cpu_default"]))
    prepare.run(config)
    questions = [q.text for q in read_questions(Path(config.task.train))]
    result: dict[str, Any] = {"rows": rows, "top_k": TOP_K, "agents": agents, "queries": queries}
    with tempfile.TemporaryDirectory(prefix="gleaner-retrieval-") as directory:
        vectors = write_index(Path(directory), Path(config.task.index), rows)
        if "exact" in parts:
            encoder = Encoder(config.retriever.encoder, threads=CORES)
            embedded = encoder.encode(questions[: 8 * max(BATCHES)])
            result["exact"] = compare_exact(vectors, embedded, pairs)
        if "serve" in parts:
            result["serve"] = compare_servers(
                Path(directory), config.retriever.encoder, questions, agents, queries, pairs
            )
    path = write_benchmark("retrieval", result)
    print(f"numbers: {path}")
    _tell(result)


def _tell(result: Mapping[str, Any]) -> None:
    for name, row in result.get("exact", {}).items():
        if isinstance(row, dict):
            ratio = row["ratio"]
            print(f"exact search ({result['exact']['dtype']}), {name}: {row['ours_ms']:.2f} ms a "
                  f"query, IndexFlatIP {row['theirs_ms']:.2f} ms: {ratio['median']:.1f}x "
                  f"({ratio['low']:.1f} to {ratio['high']:.1f})")  # fmt: skip
    if "exact" in result:
        print(f"queries with other ids than IndexFlatIP: {result['exact']['differing']}, left out "
              f"for scores within {ROUNDING:g}: {result['exact']['left_out']}")  # fmt: skip
    for way, row in result.get("serve", {}).items():
        ratio = row["ratio"]
        print(f"{way} queries: {row['ours']['per_second']:.0f}/s, p95 {row['ours']['p95_ms']:.0f} "
              f"ms; the plain server {row['theirs']['per_second']:.0f}/s, p95 "
              f"{row['theirs']['p95_ms']:.0f} ms: {ratio['median']:.1f}x "
              f"({ratio['low']:.1f} to {ratio['high']:.1f})")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
