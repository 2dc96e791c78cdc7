"""An index that does not belong to its corpus or encoder is refused, and left as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of the command line."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tiny_task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny task with its index, made by ``prepare``."""
    folder = Path(shutil.copytree(tiny_task, tmp_path_factory.mktemp("prepared") / "task"))
    done = pipeline("prepare", "experiment=cpu_tiny", "task=files", f"task.dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_second_preparation_reuses_the_index(prepared: Path) -> None:
    before = (prepared / "index" / "index.faiss").stat().st_mtime_ns
    done = pipeline("prepare", "experiment=cpu_tiny", "task=files", f"task.dir={prepared}")
    assert done.returncode == 0
    assert "reusing" in done.stdout
    assert (prepared / "index" / "index.faiss").stat().st_mtime_ns == before


def test_an_index_of_another_corpus_is_refused_with_the_remedy(
    prepared: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "task"))
    passage = {"id": "72", "contents": '"Late"\nA passage that came after the index.'}
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps(passage) + "\n")
    before = (folder / "index" / "index.faiss").read_bytes()
    run_dir = tmp_path / "run"
    done = pipeline(
        *("evaluate", "experiment=cpu_tiny", "task=files", f"task.dir={folder}"),
        *(f"policy.path={tiny_policy}", f"run_dir={run_dir}"),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert str(folder / "index") in done.stderr
    assert "build" in done.stderr
    assert (folder / "index" / "index.faiss").read_bytes() == before
    assert not run_dir.exists()
