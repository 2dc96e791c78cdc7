"""``python -m pipeline compare``: arms against a baseline over seeds, resumable file by file.

Every run is a process of its own (``python -m pipeline train ...``). A finished run is one JSON
file in ``compare.directory/NAME``; runs whose file is there are skipped, so that a comparison goes
on where it stopped, on any machine. The code and configuration of all runs must be the same: a
digest in each file is compared first.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.commands import prepare
from pipeline.compare.analyse import analyse
from pipeline.compare.render import draw, table
from pipeline.compare.result import (
    RunResult,
    code_digest,
    collect,
    read_results,
    result_file,
    write_result,
)
from pipeline.config import CompareConfig, GleanerConfig
from pipeline.errors import GleanerError, UserError
from pipeline.overrides import compose_config
from pipeline.preflight import check_run
from pipeline.progress import Progress, open_progress
from pipeline.summary import write_atomically, write_summary

__all__ = ["run"]


def run(config: GleanerConfig) -> None:
    """Run what is missing, as far as ``compare.minutes`` allows, then write tables and curves."""
    comparison = config.compare
    directory = Path(comparison.directory) / comparison.name
    arms = _arms(comparison)
    check_run(config)
    _check_same_code(read_results(directory))
    prepare.run(config)
    with open_progress(config.tracker.progress) as progress:
        _run_missing(config, arms, directory, progress)
        results = read_results(directory)
        if results:
            _write(comparison, results, progress)


def _arms(comparison: CompareConfig) -> list[str]:
    """The arms to run now. Raises UserError for a name that is no arm or an override that fails."""
    if not comparison.arms:
        raise UserError(
            "compare.arms is empty: choose a comparison with compare=credit (or another)"
        )
    chosen = [a.strip() for a in comparison.only.split(",") if a.strip()] or list(comparison.arms)
    for arm in [*chosen, comparison.baseline]:
        if arm not in comparison.arms:
            raise UserError(
                f"compare: {arm!r} is no arm of this comparison; it has "
                f"{', '.join(comparison.arms)}"
            )
    for arm in chosen:
        compose_config([*comparison.base, *comparison.arms[arm]])
    return chosen


def _check_same_code(results: Sequence[RunResult]) -> None:
    """All finished runs ran on the code that is here now."""
    now = code_digest()
    others = Counter(
        (r.content["commit"] or "an unknown commit") for r in results if r.content["code"] != now
    )
    if others:
        found, _ = others.most_common(1)[0]
        raise UserError(
            f"{sum(others.values())} finished runs of this comparison ran on other code or "
            f"configuration ({found}): check that commit out to go on with it, or remove them "
            "(or set compare.name) to begin anew"
        )


def _run_missing(
    config: GleanerConfig, arms: Sequence[str], directory: Path, progress: Progress
) -> None:
    """Seed by seed, all arms of a seed one after the other."""
    comparison = config.compare
    began = time.monotonic()
    pairs = itertools.product(range(1, comparison.seeds + 1), arms)
    missing = [(a, s) for s, a in pairs if not result_file(directory, a, s).exists()]
    longest_s = 0.0
    with progress.phase(f"compare {comparison.name}", total=len(missing)) as phase:
        for done, (arm, seed) in enumerate(missing):
            left_s = 60 * comparison.minutes - (time.monotonic() - began)
            if comparison.minutes and left_s < longest_s:
                progress.line(f"compare: {len(missing) - done} runs are left for another time")
                return
            started = time.monotonic()
            _run_one(config, arm, seed, directory)
            longest_s = max(longest_s, time.monotonic() - started)
            phase.reach(done + 1)


def _run_one(config: GleanerConfig, arm: str, seed: int, directory: Path) -> None:
    """One training in a process of its own; its result file is written last."""
    comparison = config.compare
    run_dir = Path(config.run_dir) / f"{arm}-{seed}"
    overrides = [*comparison.base, *comparison.arms[arm], f"trainer.seed={seed}"]
    command = [sys.executable, "-m", "pipeline", "train", *overrides, f"run_dir={run_dir}"]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.with_suffix(".log")
    with log.open("wb") as sink:
        done = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise GleanerError(
            f"the run {arm}-{seed} failed with exit code {done.returncode} ({' '.join(last)}); "
            f"see {log}. Finished runs are kept: the same command goes on with the others"
        )
    write_result(directory, collect(run_dir, arm, seed, overrides))
    shutil.rmtree(run_dir / "policy", ignore_errors=True)


def _write(comparison: CompareConfig, results: Sequence[RunResult], progress: Progress) -> None:
    """``compare.json``, with this comparison's part made anew, and the table and picture."""
    analysis = analyse(results, comparison.baseline, comparison.score)
    directory = Path(comparison.directory)
    whole = directory.with_suffix(".json")
    content = json.loads(whole.read_text(encoding="utf-8")) if whole.exists() else {}
    content[comparison.name] = {"definition": asdict(comparison), **analysis}
    write_summary(whole, content)
    page = directory / f"{comparison.name}.md"
    write_atomically(page, table(analysis) + "\n")
    picture = directory / f"{comparison.name}.png"
    draw(results, picture, f"Comparison {comparison.name!r}: mean and spread over seeds")
    for line in table(analysis).splitlines():
        progress.line(line)
    progress.line(f"numbers: {whole}   table: {page}   curves: {picture}")
