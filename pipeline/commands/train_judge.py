"""``python -m pipeline train_judge``: makes the small judge from scratch.

Plays the training questions with the policies of ``judge_training.policies``, labels the rounds by
known evidence, and teaches a small language model to give those labels, with its reasons, as the
JSON that every judge answers with.
"""

from __future__ import annotations

import asyncio
import copy
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.commands import prepare
from pipeline.commands.traces import label_by_evidence, play_traces
from pipeline.config import GleanerConfig
from pipeline.errors import UserError
from pipeline.judging.config import JudgeTrainingConfig
from pipeline.judging.school import train_judge
from pipeline.judging.traces import write_traces
from pipeline.preflight import check_run
from pipeline.tasks.files import read_questions

__all__ = ["judge_training_config", "run"]


def run(config: GleanerConfig) -> None:
    """Make the judge at ``judge_training.output``; what was there stays until all is measured."""
    started = time.monotonic()
    settings = judge_training_config(config.judge_training)
    check_run(config, learner=False)
    prepare.run(config)
    traces = [_collect(config, settings, policy, "train") for policy in settings.policies]
    train_judge(traces, Path(settings.work) / "model", settings)
    print(f"trained in {(time.monotonic() - started) / 60:.0f} minutes")


def judge_training_config(section: Any) -> JudgeTrainingConfig:
    """The ``judge_training`` section as a dataclass. Raises UserError for an unknown key or a value
    of the wrong type."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(JudgeTrainingConfig), section or {})
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(
            f"judge_training: {str(error).splitlines()[0]}; the keys are documented in "
            "pipeline/judging/config.py"
        ) from error
    assert isinstance(settings, JudgeTrainingConfig)
    return settings


def _collect(config: GleanerConfig, settings: JudgeTrainingConfig, policy: str, split: str) -> Path:
    """Labelled traces of a policy on a split; those of an earlier call are used again."""
    path = Path(settings.work) / f"traces-{split}-{Path(policy).name}.jsonl"
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
