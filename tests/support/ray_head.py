"""A Ray head on loopback with token authentication, for tests; ended by the pids it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.loopback_ray import loopback_environment

START_TIMEOUT_S = 180.0
START_ATTEMPTS = 3  # Ray gives a new node 30 s, which are few on a busy machine
POLL_S = 0.5
OBJECT_STORE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class RayHead:
    """A running head: where its dashboard listens, its directory, and a client's environment."""

    dashboard_url: str
    directory: Path
    environment: dict[str, str]

    @property
    def token(self) -> str:
        """The secret that clients must send."""
        return Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()

    @property
    def log(self) -> str:
        """What ``ray start`` has printed so far."""
        return (self.directory / "head.log").read_text(errors="replace")

    def http_status(self, path: str, token: str | None) -> int:
        """Status code of a GET to the dashboard; 0 where nothing answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.dashboard_url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@contextlib.contextmanager
def ray_head(num_cpus: int) -> Iterator[RayHead]:
    """Start a head with its own ports and temporary directory; end it and what it started."""
    for _ in range(START_ATTEMPTS):
        with _started(num_cpus) as (head, process):
            if _is_ready(head, process):
                yield head
                return
            log = head.log
    raise RuntimeError(f"no Ray head came up in {START_ATTEMPTS} attempts:\n{log[-3000:]}")


@contextlib.contextmanager
def _started(num_cpus: int) -> Iterator[tuple[RayHead, subprocess.Popen[bytes]]]:
    directory = Path(tempfile.mkdtemp(prefix="gl-ray-"))  # short: it holds sockets
    environment = _client_environment(directory)
    gcs, dashboard, client, agent = _free_ports(4)
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={directory / 'ray'}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--num-cpus={num_cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        "--disable-usage-stats",
    ]
    with (directory / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        yield RayHead(f"http://127.0.0.1:{dashboard}", directory, environment), process
    finally:
        end_with_descendants(process)
        shutil.rmtree(directory, ignore_errors=True)


def end_with_descendants(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process and everything it started, by pid; kill what does not go."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    _, alive = psutil.wait_procs(started, timeout=10)
    for survivor in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(alive, timeout=10)
    if process.poll() is None:
        process.kill()
        process.wait(timeout=10)


def _client_environment(directory: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    return {
        **kept,
        **loopback_environment(directory),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def _is_ready(head: RayHead, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the node runs and the job API answers; False where it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        started = "Ray runtime started" in head.log
        if started and head.http_status("/api/jobs/", head.token) == 200:
            return True
        time.sleep(POLL_S)
    return False
