"""``python -m pipeline compare``: arms against a baseline over seeds, resumable file by file.

Every run is a process of its own (``python -m pipeline train ...``). A finished run is one JSON
file in ``compare.directory/NAME``; runs whose file is there are skipped, so that a comparison goes
on where it stopped, on any machine. All runs must be made of the same code, data and libraries, and
of the overrides that their arms have now: that is checked first, and again before each run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.atomic import write_text
from pipeline.commands import prepare
from pipeline.compare.analyse import analyse
from pipeline.compare.render import draw, table
from pipeline.compare.result import (
    RunResult,
    collect,
    identity,
    read_results,
    write_result,
)
from pipeline.config import CompareConfig, GleanerConfig
from pipeline.config_checks import to_config
from pipeline.errors import GleanerError, UserError
from pipeline.judging.members import judge_members
from pipeline.overrides import CONF_DIR, check_own_overrides, compose_config
from pipeline.preflight import check_run
from pipeline.progress import Progress, open_progress
from pipeline.summary import write_summary

__all__ = ["run"]

_OWN_KEYS = ("compare", "run_dir", "tracker", "hydra")  # what overrides of this command may name
FOR_ALL_RUNS = 'give it to all runs with \'compare.base=["experiment=compare","{override}"]\''
# How and where it is run, which says nothing of what is compared.
_OF_THE_INVOCATION = ("only", "minutes", "directory", "run_timeout_s")
_END_TIMEOUT_S = 90.0  # a run that is interrupted ends its cluster in this time


def run(config: GleanerConfig) -> None:
    """Run what is missing, as far as ``compare.minutes`` allows, then write tables and curves."""
    comparison = config.compare
    directory = Path(comparison.directory) / comparison.name
    check_own_overrides("compare", _OWN_KEYS, FOR_ALL_RUNS)
    arms = chosen_arms(comparison)
    check_run(config)
    prepare.run(config)
    made_of = partial(_made_of, config, local_judges(comparison))
    with open_progress(config.tracker.progress) as progress:
        _run_missing(config, arms, directory, made_of, progress)
        results = finished_runs(comparison, made_of())
        if results:
            check_table(comparison, results)
            _write(comparison, results, progress)


def chosen_arms(comparison: CompareConfig) -> list[str]:
    """The arms to run now. Raises UserError for a name that is no arm or overrides that fail."""
    if not comparison.arms:
        raise UserError(
            "compare.arms is empty: choose a comparison with compare=credit (or another)"
        )
    chosen = list(comparison.only or comparison.arms)
    for arm in [*chosen, comparison.baseline]:
        if arm not in comparison.arms:
            raise UserError(
                f"compare: {arm!r} is no arm of this comparison; it has "
                f"{', '.join(comparison.arms)}"
            )
    for arm in chosen:
        try:
            to_config(compose_config(overrides_of(comparison, arm, 1)))
        except UserError as error:
            raise UserError(f"compare: arm {arm}: {error}") from None
    return chosen


def overrides_of(comparison: CompareConfig, arm: str, seed: int) -> list[str]:
    """What the run is started with, but for its directory."""
    return [*comparison.base, *comparison.arms[arm], f"trainer.seed={seed}"]


def finished_runs(comparison: CompareConfig, now: Mapping[str, Any]) -> list[RunResult]:
    """Its own results, and those of ``compare.share`` that are just what its runs are.

    That is: an arm of the same name and overrides, and the code, data and libraries of its own
    results (of ``now``, while there are none). Raises UserError for a comparison that is not there.
    """
    root = Path(comparison.directory)
    own = [r for r in read_results(root / comparison.name) if r.seed <= comparison.seeds]
    made_of = own[0].content["identity"] if own else now
    found = {(r.arm, r.seed): r for r in own}
    for name in comparison.share:
        if not (root / name).is_dir() and not (CONF_DIR / "compare" / f"{name}.yaml").exists():
            raise UserError(f"compare.share: there is no comparison {name!r} (no {root / name})")
        for r in read_results(root / name):
            if (
                r.arm in comparison.arms
                and r.seed <= comparison.seeds
                and r.content["overrides"] == overrides_of(comparison, r.arm, r.seed)
                and r.content["identity"] == made_of
            ):
                found.setdefault((r.arm, r.seed), r)
    return [found[key] for key in sorted(found)]


def local_judges(comparison: CompareConfig) -> list[Path]:
    """The model directories of all arms' judges in engines of ours, each once."""
    found = set()
    for arm in comparison.arms:
        judge = to_config(compose_config(overrides_of(comparison, arm, 1))).judge
        found |= {member.model for member in judge_members(judge) if member.name == "vllm"}
    return [Path(model) for model in sorted(found)]


def _made_of(config: GleanerConfig, judges: Sequence[Path]) -> dict[str, Any]:
    """What a run would be made of now."""
    policy = to_config(compose_config(config.compare.base)).policy.path
    return identity(Path(config.task.dir), Path(policy), judges)


def check_same(
    comparison: CompareConfig, results: Sequence[RunResult], now: Mapping[str, Any]
) -> None:
    """All finished runs are what they would be now. Raises UserError naming one that is not."""
    for result in results:
        _check_overrides(comparison, result)
        if differing := _differing(result, now):
            raise UserError(
                f"compare: the finished run {_name(result)} was made of other {differing}, at "
                f"commit {result.content['commit'] or 'unknown'}: check that out (or install those "
                "versions) to go on with it, or begin anew with another compare.name"
            )


def check_table(comparison: CompareConfig, results: Sequence[RunResult]) -> None:
    """The runs of a table are of its arms and overrides and made of one thing, whatever the code is
    now. Raises UserError naming one that is not."""
    first = results[0]
    for result in results:
        _check_overrides(comparison, result)
        if differing := _differing(result, first.content["identity"]):
            raise UserError(
                f"compare: the finished runs {_name(first)} and {_name(result)} were made of other "
                f"{differing}: a table is about one thing; remove the files of one of them"
            )


def _check_overrides(comparison: CompareConfig, result: RunResult) -> None:
    if result.arm not in comparison.arms:
        raise UserError(f"compare: the finished run {_name(result)} is of no arm that there is now")
    had = result.content["overrides"]
    if had != overrides_of(comparison, result.arm, result.seed):
        raise UserError(
            f"compare: the finished run {_name(result)} had other overrides ({' '.join(had)}): set "
            "them again, or begin anew with another compare.name"
        )


def _differing(result: RunResult, made_of: Mapping[str, Any]) -> str:
    """What the run was made of that is something else there, in words; empty: nothing."""
    own = result.content["identity"]
    return " and ".join(key for key in sorted({*own, *made_of}) if own.get(key) != made_of.get(key))


def _name(result: RunResult) -> str:
    return f"{result.arm}-{result.seed}"


def _run_missing(
    config: GleanerConfig,
    arms: Sequence[str],
    directory: Path,
    made_of: Callable[[], dict[str, Any]],
    progress: Progress,
) -> None:
    """Seed by seed, all arms of a seed one after the other."""
    comparison = config.compare
    began = time.monotonic()
    runs = finished_runs(comparison, made_of())
    finished = {(r.arm, r.seed) for r in runs}
    pairs = itertools.product(range(1, comparison.seeds + 1), arms)
    missing = [(a, s) for s, a in pairs if (a, s) not in finished]
    longest_s = 0.0
    with progress.phase(f"compare {comparison.name}", total=len(missing)) as phase:
        for done, (arm, seed) in enumerate(missing):
            now = made_of()
            check_same(comparison, finished_runs(comparison, now), now)
            left_s = 60 * comparison.minutes - (time.monotonic() - began)
            if comparison.minutes and left_s < longest_s:
                progress.line(f"compare: {len(missing) - done} runs are left for another time")
                return
            started = time.monotonic()
            _run_one(config, arm, seed, directory, now, made_of)
            longest_s = max(longest_s, time.monotonic() - started)
            phase.reach(done + 1)


def _run_one(
    config: GleanerConfig,
    arm: str,
    seed: int,
    directory: Path,
    ran_on: Mapping[str, Any],
    made_of: Callable[[], dict[str, Any]],
) -> None:
    """One training in a process of its own; its result file is written last."""
    overrides = overrides_of(config.compare, arm, seed)
    run_dir = Path(config.run_dir) / f"{arm}-{seed}"
    shutil.rmtree(run_dir, ignore_errors=True)  # of an attempt that was killed
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.parent / f"{run_dir.name}.log"
    command = [sys.executable, "-m", "pipeline", "train", *overrides, f"run_dir={run_dir}"]
    with log.open("wb") as sink:
        try:
            code = _call(command, sink, config.compare.run_timeout_s)
        except subprocess.TimeoutExpired as expired:
            raise GleanerError(
                f"the run {arm}-{seed} did not end within compare.run_timeout_s="
                f"{expired.timeout:g} seconds and was stopped; see {log}"
            ) from None
    if code != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise GleanerError(
            f"the run {arm}-{seed} failed with exit code {code} ({' '.join(last)}); "
            f"see {log}. Finished runs are kept: the same command goes on with the others"
        )
    if made_of() != ran_on:
        raise UserError(
            f"compare: code, data or libraries changed while {arm}-{seed} ran: its result is not "
            f"kept. Leave them alone, or work in another checkout"
        )
    write_result(directory, collect(run_dir, arm, seed, overrides, ran_on))
    shutil.rmtree(run_dir / "policy", ignore_errors=True)


def _call(command: Sequence[str], sink: Any, timeout_s: float) -> int:
    """The exit code. An interrupt is passed on, and so is the end of time (TimeoutExpired), so that
    the run ends its cluster itself."""
    process = subprocess.Popen(
        command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout_s)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is killed below
            process.wait(_END_TIMEOUT_S)
        raise
    finally:
        if process.poll() is None:
            process.kill()


def _write(comparison: CompareConfig, results: Sequence[RunResult], progress: Progress) -> None:
    """``compare.json``, with this comparison's part made anew, and the table and picture."""
    analysis = analyse(results, comparison.baseline, comparison.score)
    directory = Path(comparison.directory)
    whole = directory.parent / f"{directory.name}.json"
    content = _read_json(whole)
    definition = {k: v for k, v in asdict(comparison).items() if k not in _OF_THE_INVOCATION}
    content[comparison.name] = {"definition": definition, **analysis}
    write_summary(whole, content)
    page = directory / f"{comparison.name}.md"
    write_text(page, table(analysis) + "\n")
    picture = directory / f"{comparison.name}.png"
    draw(results, picture, f"Comparison {comparison.name!r}: mean and spread over seeds")
    for line in table(analysis).splitlines():
        progress.line(line)
    progress.line(f"numbers: {whole}   table: {page}   curves: {picture}")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): remove it, it is made anew") from None
