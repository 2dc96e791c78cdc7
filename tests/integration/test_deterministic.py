"""``deterministic=true``: two runs on the same machine have the same weights, to the last bit, and
so does a synchronous loop."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from pipeline.commands.train import question_stream
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.credit import build_algorithm
from pipeline.driver import judge_group
from pipeline.journal import read_journal
from pipeline.launch import open_stack
from pipeline.measure import training_sampling
from pipeline.overrides import compose_config
from pipeline.step_record import read_metrics
from pipeline.tasks.files import read_questions
from pipeline.types import Group, RolloutRequest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900


def settings(tiny_task: Path, run_dir: Path) -> list[str]:
    return [
        *("experiment=cpu_tiny", "deterministic=true", "task=files", f"task.dir={tiny_task}"),
        *("trainer.steps=2", "trainer.evaluate_after=false", "report.enabled=false"),
        *("rollout.num_actors=2", "cluster.num_cpus=3"),  # each has its share of the questions
        "algorithm.no_answer_reward=-0.5",  # rewards of a group then differ
        f"run_dir={run_dir}",
    ]


def train(tiny_task: Path, run_dir: Path, *overrides: str) -> dict[int, str]:
    """The digest of each published version."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline", "train"),
            *settings(tiny_task, run_dir),
            *overrides,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    assert "A worker died" not in done.stderr + done.stdout
    return read_journal(run_dir / "journal").digests


async def train_synchronously(config: GleanerConfig) -> tuple[dict[int, str], list[float]]:
    """The textbook's loop, without driver, buffer and slots: play until a step's groups have a
    signal, judge, train, publish. Digests by version and the losses."""
    algorithm = build_algorithm(config.algorithm, config.correction)
    questions = question_stream(read_questions(Path(config.task.train)), config.trainer.seed)
    tickets, digests, losses = itertools.count(), {}, []
    async with open_stack(config) as stack:
        digests[0] = (await stack.publisher.publish(0)).digest
        for step in range(1, config.trainer.steps + 1):
            groups: list[Group] = []
            while (missing := config.buffer.groups_per_step - len(groups)) > 0:
                requests = [
                    RolloutRequest(
                        question=next(questions), group_id=next(tickets),
                        num_samples=config.buffer.group_size, admission_version=step - 1,
                        sampling=training_sampling(config.rollout),
                    )
                    for _ in range(missing)
                ]  # fmt: skip
                seed = zlib.crc32(f"{config.trainer.seed} {requests[0].group_id}".encode())
                for group in await stack.rollout.rollout_wave(requests, seed):
                    if algorithm.has_signal(group):
                        groups.append(await judge_group(stack.judge, algorithm, group))
            credit = algorithm.credit(groups)
            metrics = await stack.learner.train_step(credit.samples, credit.normaliser, step - 1)
            losses.append(metrics["loss"])
            digests[step] = (await stack.publisher.publish(step)).digest
    return digests, losses


@pytest.mark.timeout(2 * LIMIT_S)
def test_two_runs_have_the_same_weights_whatever_else_they_do(tiny_task, tmp_path):
    first = train(tiny_task, tmp_path / "first", "trainer.evaluate_before=false")
    second = train(tiny_task, tmp_path / "second", "evaluate.limit=8")  # that engines sampled for
    assert first == second
    assert len(set(first.values())) == 3
    other = read_metrics(tmp_path / "first" / "metrics.jsonl")
    assert all(record.metrics["buffer/staleness_max"] == 0 for record in other)
    # and they are those of a synchronous loop, step for step
    config = to_config(compose_config(settings(tiny_task, tmp_path / "none")))
    digests, losses = asyncio.run(train_synchronously(config))
    assert (digests, losses) == (first, [record.metrics["learner/loss"] for record in other])
