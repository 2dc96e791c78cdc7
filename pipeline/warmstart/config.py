"""Settings of the warm start (the ``warmstart`` section). Importing it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "HabitConfig",
    "ModelConfig",
    "PhaseConfig",
    "ScheduleConfig",
    "SupervisedConfig",
    "WarmstartConfig",
]


@dataclass
class ModelConfig:
    """The small policy's architecture (Qwen3, tied embeddings)."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 1024
    rope_theta: float = 1.0e6


@dataclass
class ScheduleConfig:
    """How long and how fast is learnt."""

    tokens: int = 5_200_000  # tokens seen, padding not counted; 0: skip the phase
    lr: float = 1.0e-3
    min_lr: float = 0.0  # where the cosine ends
    warmup: float = 0.03  # share of the phase with a rising learning rate


@dataclass
class PhaseConfig(ScheduleConfig):
    """One supervised phase."""

    substitute: float = 0.7  # share of episodes with entity names replaced by random ones
    slip: float = 0.25  # share of clean episodes with an untrained slip and its trained recovery
    habits: float = 0.0  # how often a question's habit strikes, at each decision
    idle_guess: float = 0.0  # how often an idle guess opens an episode


@dataclass
class HabitConfig:
    """Whom habits befall: shares of the questions, dealt by the relation asked for."""

    shares: dict[str, float] = field(
        default_factory=lambda: {
            "redundant": 0.20,
            "premature": 0.11,
            "off_relation": 0.10,
            "give_up": 0.10,
            "vague": 0.06,
            "guess": 0.07,
        }
    )


@dataclass
class SupervisedConfig:
    """Supervised training of a small model on worker processes."""

    seed: int = 0
    threads: int = 1  # OpenMP threads a worker
    workers: int = 2  # data-parallel workers
    tokens_per_step: int = 1500  # padded tokens of one optimizer step, over all workers
    reading_weight: float = 0.3  # of the next-token loss on what is read: questions and passages
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    max_grad_norm: float = 1.0
    autocast: bool = False  # bf16 compute on fp32 weights: only for CPUs with AVX-512 bf16 or AMX
    log_every_s: float = 15.0
    step_timeout_s: float = 300.0  # one gradient exchange between workers


@dataclass
class WarmstartConfig(SupervisedConfig):
    """The whole warm start."""

    output: str = "assets/policy"  # the policy with habits: a Hugging Face directory
    clean_output: str = "outputs/warmstart/clean"  # the ceiling: the policy after the clean phase
    start: str = ""  # a model directory to go on from (with clean.tokens=0: teach habits alone)
    cache: str = "outputs/warmstart/cache"  # retrieval results of the scripted queries
    measure: bool = True  # on dev with the rollout engine, for the model card
    structured_init: bool = True  # wire the induction head; False only to show that it is needed
    model: ModelConfig = field(default_factory=ModelConfig)
    clean: PhaseConfig = field(default_factory=PhaseConfig)
    habits: PhaseConfig = field(
        default_factory=lambda: PhaseConfig(
            tokens=1_000_000, lr=8.0e-4, slip=0.2, habits=0.66, idle_guess=0.3
        )
    )
    book: HabitConfig = field(default_factory=HabitConfig)
