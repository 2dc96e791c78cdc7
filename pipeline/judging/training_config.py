"""Settings of the small judge's training (the ``judge_training`` section). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.warmstart.config import ScheduleConfig, SupervisedConfig

__all__ = ["JudgeTrainingConfig"]


@dataclass
class JudgeTrainingConfig(SupervisedConfig):
    """How the small judge is made."""

    output: str = "assets/judge"  # the judge: a Hugging Face directory
    work: str = "outputs/judge"  # traces, and the judge before it is measured
    start: str = "assets/policy"  # the model it goes on from: it can read already
    prompt: str = "small_v1"  # the prompt it learns to answer (pipeline/judging/prompts)
    # policies whose rollouts are the lessons
    policies: list[str] = field(default_factory=lambda: ["assets/policy"])
    samples: int = 1  # rollouts a training question and policy
    limit: int = 0  # only so many training questions; 0: all
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(tokens=10_000_000, lr=6.0e-4)
    )
    perturbed: float = 0.5  # share of traces in which something is changed
    substitute: float = 0.6  # share of traces with entity names replaced by random ones
    together: float = 0.25  # share of traces that are judged in one answer
    max_length: int = 1024  # longer lessons are left out, tokens
    canaries: int = 200  # dev traces that are kept as canaries beside the judge
    measure: bool = True  # agreement on test, by the engine of a run, for the card
    measured: int = 1000  # test questions that it is measured on
