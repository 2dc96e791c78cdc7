"""The evaluations of a run: greedy, and sampled for pass@k, on one question set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import EvaluateConfig, RolloutConfig
from pipeline.evaluation import Evaluation, evaluate
from pipeline.pools import RolloutPool
from pipeline.progress import Progress
from pipeline.types import Question, Sampling

__all__ = ["Measured", "measure", "training_sampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Evaluations of one policy on one question set; ``None`` where not asked for."""

    main: Evaluation  # greedy, unless evaluate.temperature says otherwise
    sampled: Evaluation | None = None  # evaluate.sampled samples at the training temperature
    without_search: Evaluation | None = None


def training_sampling(rollout: RolloutConfig) -> Sampling:
    """How rollouts for training are sampled."""
    return Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        max_round_tokens=rollout.max_round_tokens,
    )


async def measure(
    pool: RolloutPool,
    questions: Sequence[Question],
    *,
    name: str,
    config: EvaluateConfig,
    rollout: RolloutConfig,
    progress: Progress,
) -> Measured:
    """Run what ``config`` asks for. Raises InfrastructureError (see ``evaluate``)."""
    main_sampling = Sampling(
        temperature=config.temperature, max_round_tokens=rollout.max_round_tokens
    )

    async def run(
        what: str, asked: Sequence[Question], sampling: Sampling, samples: int, search: bool
    ) -> Evaluation:
        title = f"evaluate {name}, {what}"
        with progress.phase(title, total=len(asked)) as phase:
            return await evaluate(
                pool,
                asked,
                name=name,
                sampling=sampling,
                samples=samples,
                concurrency=config.concurrency,
                allow_search=search,
                on_progress=phase.reach,
            )

    how = "greedy" if config.temperature == 0 else f"temperature {config.temperature:g}"
    main = await run(how, questions, main_sampling, config.samples, True)
    sampled = without_search = None
    if config.sampled:
        some = questions[: config.sampled_limit or None]
        what = f"{config.sampled} samples a question"
        sampled = await run(what, some, training_sampling(rollout), config.sampled, True)
    if config.without_search:
        without_search = await run("no search", questions, main_sampling, config.samples, False)
    return Measured(main=main, sampled=sampled, without_search=without_search)
