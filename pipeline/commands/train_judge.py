"""``python -m pipeline train_judge``: makes the small judge from scratch.

Plays the training questions with the policies of ``judge_training.policies``, labels the rounds by
known evidence, and teaches a small language model to give those labels, with its reasons, as the
JSON that every judge answers with.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.atomic import sha256_of
from pipeline.commands import prepare
from pipeline.commands.traces import label_by_evidence, play_traces
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_section
from pipeline.errors import UserError
from pipeline.judging.audit import audit_summary
from pipeline.judging.card import judge_card
from pipeline.judging.config import JudgeConfig
from pipeline.judging.judged import judged_rounds
from pipeline.judging.repeats import ask_judge
from pipeline.judging.school import JSON_PIECES, train_judge
from pipeline.judging.traces import LabelledTrace, read_traces, write_traces
from pipeline.judging.training_config import JudgeTrainingConfig
from pipeline.launch import open_judge
from pipeline.measure import training_sampling
from pipeline.preflight import check_run
from pipeline.progress import open_progress
from pipeline.tasks.files import read_questions
from pipeline.warmstart.school import publish_policy

__all__ = ["judge_training_config", "run", "traces_file"]


def run(config: GleanerConfig) -> None:
    """Make the judge at ``judge_training.output``; what was there stays until all is measured."""
    settings = judge_training_config(config.judge_training)
    check_run(config, learner=False)
    prepare.run(config)
    model = Path(settings.work) / "model"
    lessons = [_collect(config, settings, policy, "train") for policy in settings.policies]
    began = time.monotonic()
    train_judge(lessons, model, settings)
    trained_s = time.monotonic() - began
    canaries = _held_out(config, settings, "dev", settings.canaries)
    write_traces(model / "canaries.jsonl", canaries)
    figures: dict[str, Any] = {}
    if settings.measure:
        test = _held_out(config, settings, "test", settings.measured)
        for rounds in ("each", "together"):
            figures[rounds] = asyncio.run(_measure(config, settings, model, rounds, test))
    card = judge_card(
        settings,
        model,
        figures,
        command=" ".join(["python -m pipeline train_judge", *sys.argv[1:]]),
        seconds=trained_s,
        pieces=len(JSON_PIECES),
        canaries=len(canaries),
    )
    publish_policy(model, Path(settings.output), card=card, figures=figures)
    print(f"judge: {settings.output} (card: README.md)")


def judge_training_config(section: Any) -> JudgeTrainingConfig:
    """The ``judge_training`` section as a dataclass. Raises UserError for an unknown key, a value
    of the wrong type, or no policy."""
    where = "pipeline/judging/training_config.py"
    settings = to_section(section, JudgeTrainingConfig, "judge_training", where)
    if not settings.policies:
        raise UserError("judge_training.policies is empty: whose rollouts should be the lessons?")
    return settings


def _collect(config: GleanerConfig, settings: JudgeTrainingConfig, policy: str, split: str) -> Path:
    """Labelled traces of a policy on a split; those of an earlier equal call are used again."""
    path = traces_file(config, settings, policy, split)
    if path.exists():
        print(f"judge: reusing {path}", flush=True)
        return path
    config = copy.deepcopy(config)
    config.policy.path = policy
    config.evaluate.samples = settings.samples
    questions = read_questions(Path(getattr(config.task, split)))[: settings.limit or None]
    played = asyncio.run(play_traces(config, questions, split))
    write_traces(path, label_by_evidence(played))
    return path


def traces_file(
    config: GleanerConfig, settings: JudgeTrainingConfig, policy: str, split: str
) -> Path:
    """Where the traces of a policy on a split are kept. The name has a digest of what they depend
    on: the policy's path, its files' sizes and times, the questions, how many of them and how often
    each is played, the protocol, the sampling, the seed."""
    questions = Path(getattr(config.task, split))
    parts = {
        "policy": str(Path(policy).resolve()) if Path(policy).exists() else policy,
        "files": [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(Path(policy).glob("*"))
            if file.is_file()
        ],
        "questions": sha256_of(questions),
        "samples": settings.samples,
        "limit": settings.limit,
        "seed": config.trainer.seed,
        "protocol": asdict(config.protocol),
        "sampling": asdict(training_sampling(config.rollout)),
        "max_model_len": config.policy.max_model_len,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return Path(settings.work) / f"traces-{split}-{Path(policy).name}-{digest[:12]}.jsonl"


def _held_out(
    config: GleanerConfig, settings: JudgeTrainingConfig, split: str, count: int
) -> list[LabelledTrace]:
    """The first traces of the first policy on questions that nothing was trained on, one a
    question."""
    traces = read_traces(_collect(config, settings, settings.policies[0], split))
    first = {trace.trajectory.question.id: trace for trace in reversed(traces)}
    return list(reversed(first.values()))[:count]


async def _measure(
    config: GleanerConfig,
    settings: JudgeTrainingConfig,
    model: Path,
    rounds: str,
    traces: Sequence[LabelledTrace],
) -> dict[str, Any]:
    """The audit of the judge, asked a round or a trajectory a call."""
    config = copy.deepcopy(config)
    config.judge = JudgeConfig(
        name="vllm",
        model=str(model),
        prompt=settings.prompt,
        rounds=rounds,
        max_tokens=160,
        max_model_len=settings.max_length,
    )
    with open_progress(config.tracker.progress) as progress:
        async with open_judge(config) as judge:
            with progress.phase(f"audit ({rounds})", total=len(traces)) as phase:
                asked = await ask_judge(
                    judge,
                    traces,
                    repeats=1,
                    together=config.audit.concurrency,
                    timeout_s=config.audit.request_timeout_s,
                    on_progress=phase.reach,
                )
    if asked.error is not None:
        raise asked.error
    return audit_summary(
        judged_rounds(traces, asked.verdicts),
        asked.stats,
        seconds=asked.seconds,
        resamples=config.audit.bootstrap,
    )
