"""Markers by folder, and the inputs that many tests share: made once a session, never changed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.tiny_policy import make_tiny_policy
from tests.support.tiny_task import make_tiny_task

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("unit", "component", "integration", "gpu")
# Of their kind they run last: they start vLLM in this process, whose CPU build takes
# torch.set_num_threads away from whatever comes later.
WITH_AN_ENGINE = ("test_rollout_engine.py", "test_small_judge.py", "test_vllm_judge.py")

# Before any library reads them: one thread a library, no telemetry, no hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A shell's `&` makes its children ignore Ctrl-C; those that tests start and interrupt must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its folder's kind, and run the quick kinds first."""

    def place(item: pytest.Item) -> tuple[int, bool]:
        kind = KINDS.index(kind_of(item.path) or "unit")
        return kind, item.path.name in WITH_AN_ENGINE

    for item in items:
        kind = kind_of(item.path)
        if kind is not None:
            item.add_marker(kind)
    items.sort(key=place)


def kind_of(path: Path) -> str | None:
    """``unit``, ``component``, ``integration`` or ``gpu``; ``None`` for doctests."""
    return next((kind for kind in KINDS if ROOT / "tests" / kind in path.parents), None)


@pytest.fixture(autouse=True)
def _gpu_tests_need_a_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data files, outside the repository."""
    folder = Path(os.environ.get("GLEANER_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data folder")
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 directory with a tokenizer that has the search tags."""
    return make_tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus.jsonl, train.jsonl, dev.jsonl and test.jsonl of made-up countries."""
    return make_tiny_task(tmp_path_factory.mktemp("task") / "tiny")
