"""Comparisons over seeds: statistics by hand, files, table and picture."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from pipeline.commands import compare as command
from pipeline.compare.analyse import (
    analyse,
    interpolated,
    last_mean,
    paired,
    smallest_detectable,
    spread,
    steps_to_score,
)
from pipeline.compare.render import draw, table
from pipeline.compare.result import (
    _SUMMARY,
    RunResult,
    code_digest,
    collect,
    identity,
    read_results,
    write_result,
)
from pipeline.config import CompareConfig
from pipeline.config_checks import to_config
from pipeline.errors import UserError
from pipeline.overrides import CONF_DIR, check_own_overrides, compose_config

CONF = CONF_DIR / "compare"


def result(arm: str, seed: int, scores: list[float], *, curve: list[float] | None = None) -> Any:
    """Checkpoints after steps 1, 2, ... of 100 tokens and 10 s each."""

    def row(i: int) -> dict[str, float]:
        return {"step": i + 1, "elapsed_s": 10.0 * (i + 1), "trained_tokens": 100.0 * (i + 1)}

    content = {
        "arm": arm,
        "seed": seed,
        "overrides": [],
        "commit": "abc",
        "identity": {"code": "1"},
        "summary": {"trained_tokens": 100 * len(scores), "seconds": {"train": 10.0 * len(scores)}},
        "checkpoints": [row(i) | {"exact_match": s} for i, s in enumerate(scores)],
        "curve": [row(i) | {"reward/exact_match": s} for i, s in enumerate(curve or scores)],
        "config": {},
    }
    return RunResult(arm, seed, content)


def test_a_runs_figure_is_the_mean_of_its_last_three_checkpoints() -> None:
    assert last_mean("exact_match")(result("a", 1, [0.1, 0.5, 0.6, 0.7])) == pytest.approx(0.6)
    assert math.isnan(last_mean("redundant_searches")(result("a", 1, [0.1])))


def test_exact_match_is_interpolated_between_checkpoints_and_unknown_outside() -> None:
    run = result("a", 1, [0.2, 0.4])
    assert interpolated(run, "trained_tokens", 150.0) == pytest.approx(0.3)
    assert math.isnan(interpolated(run, "elapsed_s", 21.0))


def test_the_score_is_reached_on_the_line_between_checkpoints() -> None:
    run = result("a", 1, [0.5, 0.7, 0.6])  # after steps 1, 2 and 3
    assert steps_to_score(run, 0.65) == pytest.approx(1.75)
    assert steps_to_score(run, 0.7) == pytest.approx(2.0)
    assert steps_to_score(run, 0.3) == 1.0  # no earlier checkpoint tells when
    assert steps_to_score(run, 0.8) == 4.0  # never: one more than it had, so that it counts as slow


def test_differences_are_paired_by_seed_and_unpaired_seeds_left_out() -> None:
    ours = [result("a", s, [v]) for s, v in ((1, 0.5), (2, 0.7), (3, 0.9))]
    theirs = [result("b", s, [v]) for s, v in ((2, 0.6), (1, 0.4), (9, 0.0))]
    made = paired(ours, theirs, last_mean("exact_match"))
    assert made["seeds"] == 2
    assert made["mean"] == pytest.approx(0.1)
    assert (made["low"], made["high"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_the_interval_covers_the_mean_and_leaves_unmeasured_runs_out() -> None:
    made = spread([1.0, 2.0, 3.0, math.nan])
    assert (made["mean"], made["sd"], made["seeds"]) == (2.0, 1.0, 3)
    assert 1.0 <= made["low"] < 2.0 < made["high"] <= 3.0  # type: ignore[operator]
    # Student's: 4.303 / sqrt(3) to each side
    assert made["t_high"] == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert spread([math.nan])["mean"] is None
    assert (spread([1.0])["mean"], spread([1.0])["low"]) == (1.0, None)


def test_the_detectable_difference_is_found_in_eight_of_ten_comparisons() -> None:
    rng = np.random.default_rng(0)
    difference = smallest_detectable(1.0, 8)
    assert difference is not None
    drawn = rng.normal(difference, 1.0, (4000, 8))
    found = (ttest_rel(drawn, np.zeros_like(drawn), axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.03)


def test_the_analysis_pairs_every_arm_with_the_baseline_at_equal_tokens() -> None:
    runs = [
        *(result("grpo", s, [0.2, 0.3, 0.4]) for s in (1, 2)),
        *(result("cw_grpo", s, [0.3, 0.4, 0.5, 0.6]) for s in (1, 2)),
    ]
    made = analyse(runs, "grpo", score=0.35)
    assert made["arms"]["cw_grpo"]["exact_match"]["mean"] == pytest.approx(0.5)
    # both at 300 tokens, where grpo ended
    assert made["paired"]["cw_grpo"]["exact_match_at_equal_tokens"]["mean"] == pytest.approx(0.1)
    assert set(made["paired"]) == {"cw_grpo"}
    assert set(made["runs"]) == {"grpo-1", "grpo-2", "cw_grpo-1", "cw_grpo-2"}
    json.dumps(made, allow_nan=False)
    assert "redundant" not in table(made)  # nobody measured it: no column
    page = table(made)
    assert "| cw_grpo | 2 | 50.0 (50.0 to 50.0) | 60.0" in page
    assert "| cw_grpo | 2 | **+20.0** (+20.0 to +20.0) [0.0] |" in page


def test_results_are_written_read_back_and_drawn(tmp_path: Path) -> None:
    for arm in ("grpo", "cw_grpo"):
        for seed in (2, 1):
            write_result(tmp_path, result(arm, seed, [0.2, 0.3]).content)
    runs = read_results(tmp_path)
    assert [(r.arm, r.seed) for r in runs] == [
        *(("cw_grpo", 1), ("cw_grpo", 2)),
        *(("grpo", 1), ("grpo", 2)),
    ]
    draw(runs, tmp_path / "curves.png", "two arms")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_broken_result_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "grpo-1.json").write_text('{"arm": "grpo", "seed": 1}')
    with pytest.raises(UserError, match=r"grpo-1\.json is no result .*it lacks checkpoints"):
        read_results(tmp_path)
    write_result(tmp_path, result("grpo", 1, [0.2]).content)
    (tmp_path / "grpo-1.json").rename(tmp_path / "grpo-2.json")
    with pytest.raises(UserError, match=r"grpo-2\.json is no result .*it is the run grpo-1"):
        read_results(tmp_path)


CONFIG = "trainer: {evaluate_on: test}\nevaluate: {split: test}\n"
STEPS = (
    {"step": 1, "version": 1, "elapsed_s": 4.0, "reward/exact_match": 0.4,
     "judge/canary_rounds": 4.0, "judge/canary_u_agreement": 0.75, "judge/canary_alarm": 0.0},
    {"step": 2, "version": 2, "elapsed_s": 8.0, "evaluate/exact_match": 0.5},
    {"step": 3, "version": 3, "elapsed_s": 12.0, "evaluate/exact_match": 0.6},
)  # fmt: skip


def make_run(run_dir: Path, steps: Any = STEPS, config: str = CONFIG) -> Path:
    rows = [json.dumps({**s, "learner/trained_tokens": 50.0}) for s in steps]
    (run_dir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    (run_dir / "config.yaml").write_text(config)
    after = {
        "em": {"value": 0.75},
        "redundant_searches": {"value": None},
        "searches_per_question": 2.0,
    }
    summary = {name: 0 for name in _SUMMARY} | {"greedy": {"after": after}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


def test_a_finished_run_directory_becomes_one_file(tmp_path: Path) -> None:
    made = collect(make_run(tmp_path), "grpo", 7, ["algorithm=grpo"], {"code": "1"})
    assert (made["arm"], made["seed"], made["identity"]) == ("grpo", 7, {"code": "1"})
    # the last policy was evaluated on the way too: it counts once
    assert made["checkpoints"] == [
        {"step": 2, "elapsed_s": 8.0, "trained_tokens": 100.0, "exact_match": 0.5},
        {
            "step": 3,
            "elapsed_s": 12.0,
            "trained_tokens": 150.0,
            "exact_match": 0.75,
            "searches_per_question": 2.0,
        },
    ]
    assert made["curve"][0]["reward/exact_match"] == 0.4
    assert made["curve"][0]["judge/canary_u_agreement"] == 0.75
    assert made["config"]["run_dir"] == tmp_path.name


def test_the_configuration_of_a_run_with_infinite_alpha_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    made = collect(
        make_run(tmp_path / "run", config=CONFIG + "algorithm: {alpha: .inf}\n"), "cw", 1, [], {}
    )
    write_result(tmp_path, made)
    (read,) = read_results(tmp_path)
    assert read.content["config"]["algorithm"]["alpha"] == "inf"


def test_two_runs_in_one_directory_and_two_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds more than one run: remove"):
        collect(make_run(tmp_path, [*STEPS[:2], *STEPS]), "grpo", 1, [], {})
    on_dev = CONFIG.replace("evaluate_on: test", "evaluate_on: dev")
    with pytest.raises(UserError, match=r"evaluate_on=dev and evaluate\.split=test must be one"):
        collect(make_run(tmp_path, config=on_dev), "grpo", 1, [], {})


def test_finished_runs_of_something_else_are_not_mixed_in() -> None:
    comparison = CompareConfig(base=["a=1"], arms={"grpo": ["b=2"]})
    now = {"code": "1", "task": "2"}

    def finished(**changes: Any) -> RunResult:
        content = {
            **result("grpo", 3, [0.2]).content,
            "overrides": ["a=1", "b=2", "trainer.seed=3"],
            "identity": now,
        }
        return RunResult(changes.pop("arm", "grpo"), 3, content | changes)

    command.check_same(comparison, [finished()], now)
    command.check_table(comparison, [finished(), finished(identity={**now})])
    for changes, message in (
        ({"identity": {"code": "1", "task": "9"}}, r"made of other task, at commit abc"),
        ({"overrides": ["trainer.steps=999"]}, r"grpo-3 had other overrides \(trainer\.steps=999"),
        ({"arm": "magic"}, r"magic-3 is of no arm"),
    ):
        with pytest.raises(UserError, match=message):
            command.check_same(comparison, [finished(), finished(**changes)], now)
        # nor into a table that is only drawn again
        with pytest.raises(UserError, match=message.removesuffix(", at commit abc")):
            command.check_table(comparison, [finished(), finished(**changes)])
    # whatever the code is now: runs of one other commit are a table
    other = {"code": "0", "task": "0"}
    command.check_table(comparison, [finished(identity=other), finished(identity=other)])


def test_a_table_is_of_the_seeds_that_it_says(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_result(tmp_path / "credit", result("grpo", seed, [0.2]).content)
    comparison = CompareConfig(name="credit", arms={"grpo": []}, seeds=2, directory=str(tmp_path))
    assert [r.seed for r in command.finished_runs(comparison, {"code": "1"})] == [1, 2]


def test_runs_of_a_shared_comparison_count_where_they_are_what_its_own_would_be(
    tmp_path: Path,
) -> None:
    now = {"code": "1"}

    def write(
        name: str, arm: str, seed: int, overrides: list[str], commit: str, code: str = "1"
    ) -> None:
        changes = {
            "overrides": [*overrides, f"trainer.seed={seed}"],
            "commit": commit,
            "identity": {"code": code},
        }
        write_result(tmp_path / name, {**result(arm, seed, [0.2]).content, **changes})

    write("credit", "grpo", 1, ["algorithm=grpo"], "shared")
    write("credit", "grpo", 2, ["algorithm=grpo"], "shared")
    write("credit", "grpo", 3, ["algorithm=grpo"], "beyond the seeds")
    write("credit", "cw_grpo", 1, ["algorithm=cw_grpo", "trainer.steps=99"], "another run")
    write("credit", "dapo", 1, ["algorithm=dapo"], "no arm here")
    write("judge", "grpo", 2, ["algorithm=grpo"], "its own")
    comparison = CompareConfig(
        name="judge",
        arms={"grpo": ["algorithm=grpo"], "cw_grpo": ["algorithm=cw_grpo"]},
        seeds=2,
        directory=str(tmp_path),
    )
    assert [r.content["commit"] for r in command.finished_runs(comparison, now)] == ["its own"]
    comparison.share = ["credit"]
    found = [(r.arm, r.seed, r.content["commit"]) for r in command.finished_runs(comparison, now)]
    assert found == [("grpo", 1, "shared"), ("grpo", 2, "its own")]
    # whatever the code is now: the table stays about one
    assert len(command.finished_runs(comparison, {"code": "2"})) == 2
    write("credit", "grpo", 1, ["algorithm=grpo"], "made again later", code="2")
    assert [r.seed for r in command.finished_runs(comparison, {"code": "2"})] == [2]
    comparison.share = ["credti"]
    with pytest.raises(UserError, match=r"compare\.share: there is no comparison 'credti'"):
        command.finished_runs(comparison, now)


def test_the_digest_of_the_code_is_of_what_a_run_depends_on(tmp_path: Path) -> None:
    assert code_digest() == code_digest()
    (tmp_path / "data").mkdir()
    for name in ("corpus.jsonl", "train.jsonl", "test.jsonl"):
        (tmp_path / "data" / name).write_text(name)
    shipped = Path("assets/policy")
    first = identity(tmp_path / "data", shipped)
    assert first["code"] == code_digest() and "torch" in first["versions"]
    assert "policy" not in first, "the shipped one is part of the code"
    (tmp_path / "data" / "train.jsonl").write_text("another question")
    assert identity(tmp_path / "data", shipped)["task"] != first["task"]


def test_another_policy_to_start_with_is_another_comparison(tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "train.jsonl", "test.jsonl", "model.safetensors"):
        (tmp_path / name).write_bytes(b"first")
    first = identity(tmp_path, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    second = identity(tmp_path, tmp_path)
    assert [key for key in first if first[key] != second[key]] == ["policy"]


def test_the_weights_of_a_judge_are_part_of_what_is_compared(tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "train.jsonl", "test.jsonl", "model.safetensors"):
        (tmp_path / name).write_bytes(b"first")
    judged = compose_config(["compare=llm_judge"]).compare
    assert command.local_judges(to_config(compose_config(["compare=credit"])).compare) == []
    assert command.local_judges(judged) == [Path("assets/judge")]
    shipped = Path("assets/policy")
    first = identity(tmp_path, shipped, [tmp_path])
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    second = identity(tmp_path, shipped, [tmp_path])
    assert [key for key in first if first[key] != second[key]] == ["judges"]
    assert "judges" not in identity(tmp_path, shipped)


def test_an_override_that_would_not_reach_the_runs_is_refused_with_what_would() -> None:
    def check(*overrides: str) -> None:
        check_own_overrides("compare", command._OWN_KEYS, command.FOR_ALL_RUNS, overrides)

    check("compare=credit", "compare.minutes=80", "run_dir=x")
    with pytest.raises(UserError, match=r"'trainer\.steps=3' would") as refused:
        check("compare=credit", "trainer.steps=3")
    (remedy,) = re.findall(r"'(compare\.base=.*)'", str(refused.value))
    followed = compose_config(["compare=credit", remedy]).compare
    assert list(followed.base) == ["experiment=compare", "trainer.steps=3"]


def test_an_interrupt_lets_the_run_end_by_itself(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time\n"
        "def end(*a): print('ended in order', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "import os; os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    with (tmp_path / "log").open("wb") as sink, pytest.raises(KeyboardInterrupt):
        command._call([sys.executable, "-c", child], sink, 60.0)
    assert (tmp_path / "log").read_text() == "ready\nended in order\n"


def test_a_run_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (tmp_path / "log").open("wb") as sink, pytest.raises(subprocess.TimeoutExpired):
        command._call(sleeps, sink, 0.5)


@pytest.mark.parametrize("name", sorted({path.stem for path in CONF.glob("*.yaml")} - {"none"}))
def test_every_arm_of_every_comparison_composes(name: str) -> None:
    comparison = compose_config([f"compare={name}"]).compare
    assert comparison.baseline in comparison.arms
    for arm, overrides in comparison.arms.items():
        made = compose_config([*comparison.base, *overrides])
        assert made.profile == "cpu_compare", arm


def test_an_unknown_arm_and_an_empty_comparison_are_refused() -> None:
    with pytest.raises(UserError, match=r"compare\.arms is empty: choose a comparison"):
        command.chosen_arms(CompareConfig())
    with pytest.raises(UserError, match=r"'magic' is no arm of this comparison; it has grpo"):
        command.chosen_arms(CompareConfig(arms={"grpo": []}, only=["magic"]))
    with pytest.raises(UserError, match=r"arm grpo: algorithm\.alpha=-1"):
        command.chosen_arms(CompareConfig(arms={"grpo": ["algorithm.alpha=-1"]}))


def test_the_documented_way_to_further_arms_composes() -> None:
    composed = compose_config(["compare=credit", "compare.only=[cw_utility,cw_correctness]"])
    assert command.chosen_arms(to_config(composed).compare) == ["cw_utility", "cw_correctness"]
