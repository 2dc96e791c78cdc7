"""Every metric that the code emits is in the registry and in docs/metrics.md, and none else."""

import ast
import re
from pathlib import Path

import numpy as np

from pipeline.config import AlgorithmConfig
from pipeline.credit.algorithm import build_algorithm
from pipeline.credit.off_policy import off_policy_metrics
from pipeline.metrics import METRICS, metrics_table
from pipeline.types import Group
from tests.support.report_run import episode, question

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = sorted({name.partition("/")[0] for name in METRICS})
NAME = re.compile(rf"(?:{'|'.join(FAMILIES)})/[a-z_]+")


def literals(*files: Path) -> set[str]:
    """All string literals, but for the keys of the registry itself."""
    found: list[str] = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "METRICS":
                node.value = None
        found += [
            n.value
            for n in ast.walk(tree)
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
    return set(found)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_every_name_in_the_code_is_registered():
    used = {text for text in literals(*sources("pipeline", "actors")) if NAME.fullmatch(text)}
    assert used - METRICS.keys() == set()


def test_every_registered_name_is_emitted_somewhere():
    full = literals(*sources("pipeline", "actors"))
    local = {
        "learner": literals(*sources("actors")),
        "credit": literals(*sources("pipeline/credit")),
    }
    local["learner"] |= set(off_policy_metrics(*[np.ones(1)] * 5, np.zeros(1)))
    orphans = [
        name
        for name in METRICS
        if name not in full
        and name.partition("/")[2].partition("_stale_")[0]
        not in local.get(name.partition("/")[0], ())
    ]
    assert orphans == []


def test_the_learners_metrics_are_registered():
    from actors import loss_metrics

    per_token = {*loss_metrics._MEANS, *loss_metrics._MAXIMA}
    made = off_policy_metrics(*[np.ones(9)] * 5, np.arange(9))
    returned = literals_of_returned_dicts(ROOT / "actors" / "learner_rank.py", "train_step")
    totals = literals_of_returned_dicts(ROOT / "actors" / "loss_metrics.py", "reduced")
    names = {f"learner/{name}" for name in per_token | returned | totals | set(made)}
    assert {"learner/loss", "learner/grad_norm"} <= names
    assert names - METRICS.keys() == set()


def literals_of_returned_dicts(file: Path, function: str) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (body,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
    return {
        key.value
        for node in ast.walk(body)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }


def test_the_metrics_of_credit_are_registered():
    q = question(3, 2)
    played = tuple(
        episode(q, sample_id=s, group_id=3, skill=skill) for s, skill in enumerate((1.0, 0.7, 0.2))
    )
    group = Group(group_id=3, question=q, trajectories=played, admission_version=0)
    emitted = build_algorithm(AlgorithmConfig()).credit([group]).metrics
    assert emitted
    assert {f"credit/{name}" for name in emitted} - METRICS.keys() == set()


def test_the_documentation_prints_the_registry():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert metrics_table() in page, "print it anew with pipeline.metrics.metrics_table()"
    documented = set(re.findall(r"^\| `([a-z_]+/[a-z0-9_]+)` \|", page, flags=re.MULTILINE))
    assert documented == METRICS.keys()
