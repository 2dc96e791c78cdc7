"""Runs the two phases on data-parallel worker processes and saves what comes out."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_json, write_lines
from pipeline.config import ProtocolConfig
from pipeline.episode.protocol import SearchProtocol
from pipeline.warmstart.batches import Batch, bucketed
from pipeline.warmstart.config import PhaseConfig, WarmstartConfig
from pipeline.warmstart.habits import HabitBook
from pipeline.warmstart.induction import copy_accuracy, wire_induction_heads
from pipeline.warmstart.model import build_model
from pipeline.warmstart.plans import PlannedQuestion
from pipeline.warmstart.retrieval import RetrievalTable
from pipeline.warmstart.script import Mix, Scripter
from pipeline.warmstart.substitute import NameMaker
from pipeline.warmstart.teacher import Teacher
from pipeline.warmstart.train import train_phase
from pipeline.warmstart.workers import Log, run_workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

__all__ = ["Curriculum", "attend", "initial_model", "publish_policy", "save_policy"]


@dataclass(frozen=True)
class Curriculum:
    """Everything the workers need; picklable. ``start`` is a model directory to go on from, in
    place of a new model. ``phases`` are (name, settings, directory to save to)."""

    questions: list[PlannedQuestion]
    book: HabitBook
    table: RetrievalTable
    tokenizer: PreTrainedTokenizerBase
    protocol: ProtocolConfig
    max_model_len: int
    phases: list[tuple[str, PhaseConfig, Path]]
    start: Path | None = None


def initial_model(tokenizer: PreTrainedTokenizerBase, config: WarmstartConfig) -> Qwen3ForCausalLM:
    """The model before training: structured, unless ``structured_init`` is off."""
    model = build_model(config.model, tokenizer, seed=config.seed)
    if config.structured_init:
        wire_induction_heads(model, seed=config.seed)
    return model


def save_policy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write a Hugging Face directory under a temporary name, then move it into place."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    _replace_directory(temporary, directory)


def attend(curriculum: Curriculum, config: WarmstartConfig) -> None:
    """Train all phases. Raises GleanerError where a worker fails."""
    run_workers(partial(_work, curriculum, config), config)


def _work(curriculum: Curriculum, config: WarmstartConfig, rank: int, log: Log) -> None:
    """One worker process."""
    import torch
    from transformers import Qwen3ForCausalLM

    if curriculum.start is not None:
        model = Qwen3ForCausalLM.from_pretrained(curriculum.start, dtype=torch.float32)
    else:
        model = initial_model(curriculum.tokenizer, config)
        log(f"before training it copies {copy_accuracy(model):.0%} of random repeated tokens")
    teacher = _teacher(curriculum)
    for name, phase, directory in curriculum.phases:
        rng = random.Random(f"{config.seed}/{name}/{rank}")
        batches = _batches(teacher, phase, curriculum, config, rng)
        train_phase(model, batches, phase, config, name=name, log=log)
        if rank == 0:
            save_policy(model, curriculum.tokenizer, directory)
            log(f"{name}: saved to {directory}")


def _teacher(curriculum: Curriculum) -> Teacher:
    return Teacher(
        questions=curriculum.questions,
        scripter=Scripter(
            retrieve=curriculum.table,
            book=curriculum.book,
            max_rounds=curriculum.protocol.max_rounds,
        ),
        protocol=SearchProtocol(curriculum.protocol, curriculum.tokenizer),
        make_name=NameMaker.from_passages(curriculum.table.passages.values()),
    )


def _batches(
    teacher: Teacher,
    phase: PhaseConfig,
    curriculum: Curriculum,
    config: WarmstartConfig,
    rng: random.Random,
) -> Iterator[Batch]:
    mix = Mix(habits=phase.habits, idle_guess=phase.idle_guess, slip=phase.slip)
    return bucketed(
        teacher.episodes(mix, phase.substitute, rng),
        tokens_per_batch=config.tokens_per_step // config.workers,
        max_length=curriculum.max_model_len,
        pad_id=curriculum.tokenizer.pad_token_id,
        rng=rng,
    )


def publish_policy(
    source: Path, destination: Path, *, card: str, figures: Mapping[str, Any]
) -> None:
    """Copy a trained policy to where it is used, with its card and figures, all at once.

    The old directory is replaced only when the new one is whole.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    write_lines(temporary / "README.md", card.rstrip("\n").split("\n"))
    write_json(temporary / "figures.json", dict(figures))
    _replace_directory(temporary, destination)


def _replace_directory(temporary: Path, destination: Path) -> None:
    """Sync the files of ``temporary`` and put it in the place of ``destination``."""
    for path in temporary.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = destination.with_name(f".{destination.name}.old-{os.getpid()}")
    if destination.exists():
        destination.replace(old)
    temporary.replace(destination)
    shutil.rmtree(old, ignore_errors=True)
