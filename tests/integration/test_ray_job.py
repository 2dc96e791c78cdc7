"""The run as a job on a cluster: submitted from a tree that holds an environment and data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_head import RayHead, ray_head

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("actors", "assets", "conf", "pipeline", "retrieval_index", ".rayignore", "setup.cfg")
BALLAST_BYTES = 64 * 2**20
JOB_TIMEOUT_S = 900


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(num_cpus=8) as running:
        yield running


@pytest.fixture(scope="module")
def working_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a big .venv and data in it, and no .gitignore."""
    tree = tmp_path_factory.mktemp("job") / "gleaner"
    tree.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tree / part, ignore=ignored)
        else:
            shutil.copy(source, tree / part)
    for ballast in (".venv/lib/library.so", "data/default/corpus.jsonl", "outputs/old/policy.bin"):
        (tree / ballast).parent.mkdir(parents=True)
        (tree / ballast).write_bytes(os.urandom(BALLAST_BYTES))
    return tree


def test_a_client_without_the_token_is_refused(head: RayHead) -> None:
    assert head.http_status("/api/jobs/", None) == 401
    assert head.http_status("/api/jobs/", "wrong" * 10) in (401, 403)


@pytest.mark.timeout(JOB_TIMEOUT_S + 60)
def test_a_submitted_job_trains_and_takes_neither_environment_nor_data_along(
    head: RayHead, working_tree: Path, tiny_task: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [
            *("ray", "job", "submit", "--address", head.dashboard_url, "--working-dir", "."),
            *("--", "python", "-m", "pipeline", "train", "experiment=cpu_tiny"),
            *("task=files", f"task.dir={tiny_task}", f"run_dir={run_dir}"),
            *(f"task.index={tmp_path / 'index'}", "trainer.evaluate_before=false"),
            # On made-up countries the small policy is rarely right: that silence costs gives the
            # rewards of a group something to differ in.
            *("algorithm.no_answer_reward=-0.5", "evaluate.limit=4"),
        ],
        cwd=working_tree, env=head.environment, capture_output=True, text=True,
        timeout=JOB_TIMEOUT_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, "\n".join((done.stdout[-4000:], done.stderr[-2000:], head.log))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 2
    assert (run_dir / "policy" / "model.safetensors").stat().st_size > 0
    packages = "ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"
    (package,) = head.directory.glob(packages)
    assert (package / "pipeline" / "driver.py").exists()
    taken = {path.name for path in package.iterdir()}
    assert taken.isdisjoint({".venv", "data", "outputs"}), taken
