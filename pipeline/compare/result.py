"""One finished run of a comparison, as one small JSON file.

``ARM-SEED.json`` holds what the run was (arm, seed, overrides, resolved configuration, commit,
digest of the code), the figures of its ``summary.json``, its evaluated checkpoints and its
learning curve. A file that is there is a run that is done.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.step_record import StepRecord, read_metrics
from pipeline.summary import write_summary

__all__ = ["RunResult", "code_digest", "collect", "commit", "read_results", "result_file"]

ROOT = Path(__file__).resolve().parents[2]
_CODE = ("actors", "conf", "pipeline", "retrieval_index", "assets/policy")
_NOT_THE_RUN = ("pipeline/compare", "pipeline/report", "conf/compare")  # read results, make none
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
    "buffer/filtered",
    "buffer/staleness_mean",
    "learner/effective_sample_size",
    "learner/clip_fraction",
    "learner/entropy",
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
            results.append(RunResult(str(content["arm"]), int(content["seed"]), content))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is no result of a comparison ({error}): remove it") from None
    return sorted(results, key=lambda r: (r.arm, r.seed))


def collect(run_dir: Path, arm: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The content of a result file, from a finished run directory."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    records = list(read_metrics(run_dir / "metrics.jsonl"))
    tokens = _cumulated_tokens(records)
    return {
        "arm": arm,
        "seed": seed,
        "overrides": list(overrides),
        "commit": commit(),
        "code": code_digest(),
        "summary": {key: summary[key] for key in _SUMMARY},
        "checkpoints": _checkpoints(records, tokens, summary),
        "curve": [_row(r, t) | _values(r, _CURVE) for r, t in zip(records, tokens, strict=True)],
        "config": yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")),
    }


def write_result(directory: Path, content: Mapping[str, Any]) -> Path:
    """Whole or not at all."""
    file = result_file(directory, content["arm"], content["seed"])
    write_summary(file, content)
    return file


def _checkpoints(
    records: Sequence[StepRecord], tokens: Sequence[float], summary: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Evaluations on the way, and the one after training."""
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
    return {n: round(record.metrics[n], 5) for n in names if n in record.metrics}


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
    digest = hashlib.sha256()
    for folder in _CODE:
        for file in sorted((ROOT / folder).rglob("*")):
            name = file.relative_to(ROOT).as_posix()
            if not file.is_file() or "__pycache__" in name or name.startswith(_NOT_THE_RUN):
                continue
            digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout
