"""The small corpus, its index and a server over it: made once, never changed."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval_index import build_index
from tests.integration.retrieval.facts import FACTS, MINILM, PACKAGE, write_corpus


@pytest.fixture(scope="session", autouse=True)
def _minilm_is_installed() -> None:
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {PACKAGE}")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("facts") / "corpus.jsonl", FACTS)


@pytest.fixture(scope="session")
def index(corpus: Path) -> Path:
    build_index(corpus, corpus.parent / "index", MINILM, progress=False)
    return corpus.parent / "index"


@pytest.fixture(scope="session")
def server(index: Path) -> Iterator[str]:
    """The address of the served index; stopped as Ctrl-C does."""
    command = [sys.executable, "-m", "retrieval_index", "serve", f"index={index}", "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()  # printed once it listens and the model is loaded
    assert line.startswith("8 passages on http://127.0.0.1:")
    yield line.split()[-1].removesuffix("/retrieve")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
