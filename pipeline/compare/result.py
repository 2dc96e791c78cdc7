"""One finished run of a comparison, as one small JSON file.

``ARM-SEED.json`` holds what the run was (arm, seed, overrides, resolved configuration, commit,
digest of the code), the figures of its ``summary.json``, its evaluated checkpoints and its
learning curve. A file that is there is a run that is done.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.step_record import StepRecord, read_metrics
from pipeline.summary import package_versions, write_summary

__all__ = [
    "RunResult",
    "code_digest",
    "collect",
    "commit",
    "identity",
    "read_results",
    "result_file",
    "write_result",
]

ROOT = Path(__file__).resolve().parents[2]
_CODE = ("actors", "conf", "pipeline", "retrieval_index", "assets/policy")
# These choose runs and read results, and make none.
_NOT_THE_RUN = (
    "pipeline/compare",
    "pipeline/commands/compare.py",
    "pipeline/report",
    "conf/compare",
)
_KEYS = {
    "arm",
    "seed",
    "overrides",
    "commit",
    "identity",
    "summary",
    "checkpoints",
    "curve",
    "config",
}
_PYTHON = "python"  # of no account for a result
_SUMMARY = (
    "profile",
    "algorithm",
    "seed",
    "steps",
    "seconds",
    "em",
    "redundant_searches",
    "staleness",
    "trained_tokens",
    "trajectories_per_s",
    "versions",
    "machine",
)
_CURVE = (
    "reward/exact_match",
    "rollout/searches_per_question",
    "rollout/redundant_searches",
    "rollout/tokens_per_trajectory",
    "credit/contribution_concentration",
    "credit/contributing_rounds_share",
    "credit/no_contribution_share",
    "credit/success_share",
    "buffer/filtered",
    "buffer/staleness_mean",
    "learner/effective_sample_size",
    "learner/correction_cut_fraction",
    "learner/sampler_ratio_p01",
    "learner/sampler_ratio_p99",
    "learner/clip_fraction",
    "learner/grad_norm",
    "learner/entropy",
    "judge/canary_rounds",
    "judge/canary_u_agreement",
    "judge/canary_v_agreement",
    "judge/canary_alarm",
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """One file. ``checkpoints`` and ``curve`` are rows in order of steps."""

    arm: str
    seed: int
    content: Mapping[str, Any]

    @property
    def checkpoints(self) -> Sequence[Mapping[str, float]]:
        """``step, elapsed_s, trained_tokens, exact_match, redundant_searches,
        searches_per_question`` of every evaluated policy."""
        return self.content["checkpoints"]

    @property
    def curve(self) -> Sequence[Mapping[str, float]]:
        """One row a train step: ``step, elapsed_s, trained_tokens`` and training metrics."""
        return self.content["curve"]


def result_file(directory: Path, arm: str, seed: int) -> Path:
    """Where the run of ``arm`` with ``seed`` is, or will be."""
    return directory / f"{arm}-{seed}.json"


def read_results(directory: Path) -> list[RunResult]:
    """All finished runs, by arm and seed. Raises UserError naming a file that cannot be read."""
    results = []
    for file in sorted(directory.glob("*-*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if missing := _KEYS - content.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            if file != result_file(directory, content["arm"], content["seed"]):
                raise ValueError(f"it is the run {content['arm']}-{content['seed']}")
            results.append(RunResult(content["arm"], int(content["seed"]), content))
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{file} is no result of a comparison ({error}): remove it") from None
    return sorted(results, key=lambda r: (r.arm, r.seed))


def identity(task_dir: Path, policy_dir: Path, judge_dirs: Sequence[Path] = ()) -> dict[str, Any]:
    """What must be the same for all runs of a comparison: code, the task's files, libraries.

    And the policy that they start with, where it is not the one that comes with the code, and the
    weights of the language models that judge them.
    """
    files = [task_dir / name for name in ("corpus.jsonl", "train.jsonl", "test.jsonl")]
    versions = {k: v for k, v in package_versions().items() if k != _PYTHON}
    made_of = {"code": code_digest(), "task": _digest(files), "versions": versions}
    if not policy_dir.resolve().is_relative_to(ROOT / "assets"):
        made_of["policy"] = _digest(_weights(policy_dir))
    if judge_dirs:
        made_of["judges"] = _digest(file for folder in judge_dirs for file in _weights(folder))
    return made_of


def collect(
    run_dir: Path, arm: str, seed: int, overrides: Sequence[str], ran_on: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of a result file, from a finished run directory.

    ``ran_on`` is the ``identity`` from before the run. Raises UserError for a directory that holds
    more than one whole run, or evaluations on two splits.
    """
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    records = list(read_metrics(run_dir / "metrics.jsonl"))
    if [r.step for r in records] != list(range(1, len(records) + 1)):
        raise UserError(f"{run_dir}/metrics.jsonl holds more than one run: remove {run_dir}")
    on_the_way, at_the_end = config["trainer"]["evaluate_on"], config["evaluate"]["split"]
    if on_the_way != at_the_end:
        raise UserError(
            f"compare: trainer.evaluate_on={on_the_way} and evaluate.split={at_the_end} must be "
            "one split: set both in compare.base"
        )
    tokens = _cumulated_tokens(records)
    return {
        "arm": arm,
        "seed": seed,
        "overrides": list(overrides),
        "commit": commit(),
        "identity": dict(ran_on),
        "summary": {key: summary[key] for key in _SUMMARY},
        "checkpoints": _checkpoints(records, tokens, summary),
        "curve": [_row(r, t) | _values(r, _CURVE) for r, t in zip(records, tokens, strict=True)],
        "config": _finite({**config, "run_dir": run_dir.name}),  # a path of no account elsewhere
    }


def _finite(value: Any) -> Any:
    """JSON knows no infinity (alpha): such a number becomes its name.

    >>> _finite({"alpha": float("inf"), "betas": [0.9]})
    {'alpha': 'inf', 'betas': [0.9]}
    """
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_result(directory: Path, content: Mapping[str, Any]) -> Path:
    """Whole or not at all."""
    file = result_file(directory, content["arm"], content["seed"])
    write_summary(file, content)
    return file


def _checkpoints(
    records: Sequence[StepRecord], tokens: Sequence[float], summary: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Evaluations on the way, and the one after training; one a step, the later one counts."""
    names = ("exact_match", "redundant_searches", "searches_per_question")
    rows = [
        _row(r, t) | {n: r.metrics[f"evaluate/{n}"] for n in names if f"evaluate/{n}" in r.metrics}
        for r, t in zip(records, tokens, strict=True)
        if "evaluate/exact_match" in r.metrics
    ]
    after = summary["greedy"]["after"]
    if after is not None:
        last = {
            "exact_match": after["em"]["value"],
            "redundant_searches": after["redundant_searches"]["value"],
            "searches_per_question": after["searches_per_question"],
        }
        rows = [row for row in rows if row["step"] != records[-1].step]
        rows.append(
            _row(records[-1], tokens[-1]) | {k: v for k, v in last.items() if v is not None}
        )
    return rows


def _row(record: StepRecord, tokens: float) -> dict[str, float]:
    return {
        "step": record.step,
        "elapsed_s": round(record.elapsed_s, 2),
        "trained_tokens": tokens,
    }


def _values(record: StepRecord, names: Sequence[str]) -> dict[str, float]:
    found = {n: record.metrics[n] for n in names if n in record.metrics}
    return {n: round(v, 5) for n, v in found.items() if math.isfinite(v)}


def _cumulated_tokens(records: Sequence[StepRecord]) -> list[float]:
    total, tokens = 0.0, []
    for record in records:
        total += record.metrics["learner/trained_tokens"]
        tokens.append(total)
    return tokens


def commit() -> str:
    """The checked-out commit, with ``+`` where files differ from it; empty without git."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


def code_digest() -> str:
    """SHA-256 of every source and configuration file that a run's outcome depends on."""
    files = [file for folder in _CODE for file in (ROOT / folder).rglob("*") if file.is_file()]
    return _digest(
        file
        for file in sorted(files)
        if "__pycache__" not in file.parts
        and not file.relative_to(ROOT).as_posix().startswith(_NOT_THE_RUN)
    )


def _weights(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout
