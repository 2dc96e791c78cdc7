"""``make bench-retrieval-build``: how long an index takes to build, and how much memory.

    python -m benchmarks.retrieval_build [real=10000,100000] [stand_in=100000,1000000]
        [e5_shape=500] [workers=2]

The default task's passages, repeated (with ids of their own) up to each size. ``real`` sizes go
through the task's encoder. ``stand_in`` sizes get random unit vectors in place of encoding, so that
what is measured is everything else: scanning, writing, assembling; once in one process and once
with workers, whose vectors come to the building process. ``e5_shape``: passages of 100
words, as wiki-18's, through a model of e5-base's size with random weights: as fast as e5. Memory is
the peak of what the processes hold themselves (anonymous pages; mapped files can be dropped).

Results: ``benchmarks/results/retrieval_build.json``, with an extrapolation to 21 million passages
of 768 dimensions from the largest stand-in.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.paired import write_benchmark
from pipeline.commands import prepare
from pipeline.config_checks import to_config
from pipeline.overrides import compose_config
from retrieval_index import build
from retrieval_index.corpus import read_corpus
from retrieval_index.model_files import resolve_encoder

WIKI_ROWS, WIKI_DIMENSION = 21_015_324, 768
POLL_S = 0.05


class StandIn:
    """Takes the place of `retrieval_index.encoder.Encoder`: random unit vectors, by the texts."""

    dimension, fingerprint, batch_size = 384, "stand-in", 1024

    def __init__(self, name: str, **_: Any) -> None:
        self.name = name

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """float32[n, 384]."""
        rng = np.random.default_rng(zlib.crc32(texts[0].encode()))
        vectors = rng.standard_normal((len(texts), self.dimension), dtype=np.float32)
        if on_progress is not None:
            on_progress(len(texts))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_corpus(path: Path, texts: Sequence[str], rows: int) -> None:
    """``rows`` passages."""
    with path.open("w") as file:
        for row in range(rows):
            line = {"id": str(row), "contents": texts[row % len(texts)]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_e5_shape(directory: Path, encoder: str) -> None:
    """A BERT of 12 layers and 768 dimensions, with the task encoder's tokenizer (BERT's, too)."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder(encoder))
    tokenizer.save_pretrained(directory)
    BertModel(BertConfig(vocab_size=len(tokenizer))).eval().save_pretrained(directory)


def hundred_words(texts: Sequence[str], rows: int) -> list[str]:
    """Texts of that length, of the task's one after the other."""
    words = " ".join(texts).split()
    return [" ".join(words[100 * i : 100 * i + 100]) for i in range(min(rows, len(words) // 100))]


def measure(command: Sequence[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of a process with its children."""
    began, cpu_s, peak = time.monotonic(), 0.0, 0
    process = psutil.Popen(command)
    while process.poll() is None:
        memory, spent = 0, 0.0
        for one in _tree(process):
            try:
                held, times = one.memory_info(), one.cpu_times()
            except psutil.Error:
                continue
            memory += held.rss - held.shared
            spent += times.user + times.system
        peak, cpu_s = max(peak, memory), max(cpu_s, spent)
        time.sleep(POLL_S)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return {"seconds": time.monotonic() - began, "cpu_s": cpu_s, "peak_gib": peak / 2**30}


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def build_with_stand_in(corpus: Path, index: Path, encoder: str, workers: int) -> None:
    """Runs in a process of its own."""
    build.Encoder = StandIn  # type: ignore[assignment,misc]
    build.build_index(corpus, index, encoder, workers=workers, progress=False)


def main(arguments: Sequence[str]) -> None:
    """Measure, write and print."""
    if arguments[:1] == ["stand-in"]:
        corpus, index, encoder, processes = arguments[1:]
        build_with_stand_in(Path(corpus), Path(index), encoder, int(processes))
        return
    options = dict(a.split("=", 1) for a in arguments)
    real = [int(n) for n in options.pop("real", "10000,100000").split(",") if n]
    stand_in = [int(n) for n in options.pop("stand_in", "100000,1000000").split(",") if n]
    e5_shape = [int(n) for n in options.pop("e5_shape", "500").split(",") if n]
    workers = int(options.pop("workers", "2"))
    config = to_config(compose_config(["experiment=cpu_default"]))
    prepare.run(config)
    texts = [passage.contents for passage in read_corpus(Path(config.task.corpus))]
    rows: list[dict[str, Any]] = []
    for kind, sizes, processes in (
        ("e5 shape", e5_shape, workers),
        ("real", real, workers),
        ("stand-in", stand_in, 1),
        ("stand-in", stand_in, workers),
    ):
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="gleaner-build-") as directory:
                corpus, index = Path(directory) / "corpus.jsonl", Path(directory) / "index"
                encoder = config.retriever.encoder
                if kind == "e5 shape":
                    write_e5_shape(Path(directory) / "e5", encoder)
                    encoder = str(Path(directory) / "e5")
                    write_corpus(corpus, hundred_words(texts, size), size)
                else:
                    write_corpus(corpus, texts, size)
                command = (
                    [sys.executable, "-m", "retrieval_index", "build", f"corpus={corpus}",
                     f"index={index}", f"encoder={encoder}", f"workers={processes}"]
                    if kind != "stand-in"
                    else [sys.executable, "-m", "benchmarks.retrieval_build", "stand-in",
                          str(corpus), str(index), encoder, str(processes)]
                )  # fmt: skip
                measured = measure(command)
            rows.append({"kind": kind, "passages": size, "workers": processes, **measured})
            print(f"{kind}, {size:,} passages, workers={processes}: "
                  f"{size / measured['seconds']:.0f} a second, {measured['peak_gib']:.2f} GiB",
                  flush=True)  # fmt: skip
    result: dict[str, Any] = {"rows": rows, "texts": len(texts)}
    largest = max((r for r in rows if r["kind"] == "stand-in"), key=_passages, default=None)
    if largest is not None:
        seconds = largest["seconds"] / largest["passages"] * WIKI_ROWS
        result["wiki_18_without_encoding_h"] = seconds * WIKI_DIMENSION / 384 / 3600
    print(f"numbers: {write_benchmark('retrieval_build', result)}")


def _passages(row: dict[str, Any]) -> int:
    return int(row["passages"])


if __name__ == "__main__":
    main(sys.argv[1:])
