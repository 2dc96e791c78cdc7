"""vLLM's own OpenAI server, with a model of ours."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from actors.vllm_io import engine_environment
from pipeline.config import RolloutConfig

START_S = 300.0


@contextlib.contextmanager
def vllm_server(model: Path, *, name: str, key: str, log: Path) -> Iterator[str]:
    """Serves ``model`` as ``name`` to who has ``key``; gives the base URL."""
    with _reserved_port() as port:
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(model, name, key, port),
                env={**os.environ, **engine_environment(RolloutConfig(threads=1))},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until_up(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _stop(process)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A port for a server that reuses addresses, as vLLM's does. Linux gives it to nobody who asks
    for any free one, for we have it as well and do not listen."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(("127.0.0.1", 0))
        yield ours.getsockname()[1]


def _command(model: Path, name: str, key: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", key),
        *("--model", str(model), "--served-model-name", name, "--dtype", "float32"),
        *("--max-model-len", "1024", "--max-num-seqs", "8", "--enforce-eager"),
        *("--generation-config", "vllm", "--kv-cache-memory-bytes", str(10**8)),
        "--enable-prompt-tokens-details",
        # A random model would fill its answer with the white space that JSON allows.
        "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    told = log.read_text(errors="replace")[-4000:]
    pytest.fail(f"vLLM's server did not come up (exit code {process.poll()}):\n{told}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, and its engine where it left that behind: they are one process group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
