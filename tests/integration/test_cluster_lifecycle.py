"""A local cluster starts on loopback and leaves nothing behind, however its driver ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.cluster import running_cluster
from actors.placement import plan_placement
from pipeline.config import ClusterConfig, LearnerConfig, RetrieverConfig, RolloutConfig
from pipeline.errors import UserError
from pipeline.judging.config import JudgeConfig

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import contextlib, json, sys, threading
import psutil
from actors.cluster import running_cluster
from actors.placement import plan_placement
from pipeline.config import *
from pipeline.judging.config import JudgeConfig

plan = plan_placement(RolloutConfig(), RetrieverConfig(), JudgeConfig(), LearnerConfig())
config = ClusterConfig(
    address="local", num_cpus=2, object_store_gib=0.1, temp_dir=sys.argv[1], start_timeout_s=400
)
with running_cluster(config, plan) as cluster:
    import ray
    ray.get(ray.remote(lambda: 1).options(num_cpus=0).remote())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = set()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            listening |= {
                c.laddr.ip.removeprefix("::ffff:")
                for c in process.net_connections("tcp") if c.status == "LISTEN"
            }
    pids = [p.pid for p in family[1:]]
    print(json.dumps({"pids": pids, "listening": sorted(listening)}), flush=True)
    if sys.argv[2] == "wait":
        threading.Event().wait()
"""


def start_driver(temp_dir: Path, mode: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Run DRIVER until its cluster is up; returns the process and what it reported."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(temp_dir), mode],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert driver.stdout is not None
    line = driver.stdout.readline()
    assert line, "the driver ended before its cluster was up"
    return driver, json.loads(line)


def all_gone(pids: list[int], within_s: float) -> bool:
    """Whether every process ends in time."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not [p for p in alive if is_running(p)]


def is_running(process: psutil.Process) -> bool:
    """Whether it is there, and not a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def temp_dir() -> Any:
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="gl-"))  # short, for the sockets in it
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_it_listens_on_loopback_only_and_a_normal_end_leaves_no_process(temp_dir: Path) -> None:
    driver, report = start_driver(temp_dir, "leave")
    assert report["listening"] == ["127.0.0.1"]
    assert len(report["pids"]) >= 3  # at least GCS, raylet and a worker
    assert driver.wait(60) == 0
    assert all_gone(report["pids"], 30)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_interrupted_or_killed_leaves_no_process(
    temp_dir: Path, ending: signal.Signals
) -> None:
    driver, report = start_driver(temp_dir, "wait")
    driver.send_signal(ending)
    assert driver.wait(60) != 0
    assert all_gone(report["pids"], 120)


def test_too_few_cpus_are_refused_before_anything_starts() -> None:
    import ray

    plan = plan_placement(
        RolloutConfig(num_actors=3), RetrieverConfig(), JudgeConfig(), LearnerConfig()
    )
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=r"asks for 4 CPUs .* the cluster has 2 CPUs"),
        running_cluster(ClusterConfig(address="local", num_cpus=2), plan),
    ):
        pass
    assert not ray.is_initialized()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:9", "no Ray cluster answers there"), ("nonsense", "is no address")],
)
def test_an_address_without_a_cluster_is_a_user_error(address: str, message: str) -> None:
    import ray

    plan = plan_placement(RolloutConfig(), RetrieverConfig(), JudgeConfig(), LearnerConfig())
    with (
        pytest.raises(UserError, match=message),
        running_cluster(ClusterConfig(address=address), plan),
    ):
        pass
    assert not ray.is_initialized()


def test_a_temporary_directory_that_is_too_long_for_sockets_is_refused() -> None:
    plan = plan_placement(RolloutConfig(), RetrieverConfig(), JudgeConfig(), LearnerConfig())
    config = ClusterConfig(address="local", num_cpus=2, temp_dir="/tmp/" + "x" * 60)
    with pytest.raises(UserError, match="too long for the sockets"), running_cluster(config, plan):
        pass
