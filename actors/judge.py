"""The judge pool's actor: scores the search rounds of trajectories.

What stands behind it is a backend: the rule over known evidence, a language model (at an endpoint,
or in an engine in this process), or several of these as one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.episode.evidence import flip_verdicts, judge_by_evidence
from pipeline.errors import StoppedError, UserError
from pipeline.failpoints import failpoint
from pipeline.judging.cache import VerdictCache
from pipeline.judging.chat import Budget, Chat, Usage
from pipeline.judging.config import JudgeConfig
from pipeline.judging.ensemble import EnsembleJudge, JudgeBackend
from pipeline.judging.llm_judge import AskingConfig, LLMJudge
from pipeline.judging.members import judge_members
from pipeline.judging.prompt import new_secret, read_prompt
from pipeline.types import Trajectory, Verdict

__all__ = ["Judge", "judge_backend", "judge_environment", "judge_models"]


class Judge:
    """Plain Python; actors/pool.py makes Ray actors of it.

    The marks around traces are made with a secret of this process. Raises UserError for a backend
    that cannot be made.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._backend = judge_backend(config, new_secret())
        self._rounds = self._failures = self._failures_in_a_row = 0
        self._busy_s = 0.0
        self._calls_under_way, self._busy_since = 0, 0.0

    async def ready(self) -> bool:
        """Whether it can take work. Raises UserError or InfrastructureError where it cannot."""
        await self._backend.ready()
        return True

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """For each trajectory one verdict a search round, ``None`` where it cannot be judged.

        Raises StoppedError after ``stop_after_failures`` rounds in a row without a verdict.
        """
        with self._at_work():
            if await _to_say_garbage():
                return ["garbage" for _ in trajectories]  # type: ignore[misc]
            return await self._judged(trajectories)

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        """The verdict on the last search round alone, of judges that judge by round. Raises as
        `judge` does."""
        with self._at_work():
            if await _to_say_garbage():
                return "garbage"  # type: ignore[return-value]
            verdict = await self._backend.judge_last(trajectory)
            same = [verdict] * len(trajectory.search_rounds)  # a flip depends on the place
            verdict = flip_verdicts(trajectory, same, self._config.flip_probability)[-1]
            self._count([verdict])
            return verdict

    async def _judged(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        judged = await self._backend.judge(trajectories)
        verdicts = [
            flip_verdicts(t, v, self._config.flip_probability)
            for t, v in zip(trajectories, judged, strict=True)
        ]
        self._count([v for judged in verdicts for v in judged])
        return verdicts

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Seconds in which several calls are under way count once."""
        if not self._calls_under_way:
            self._busy_since = time.monotonic()
        self._calls_under_way += 1
        try:
            yield
        finally:
            self._calls_under_way -= 1
            if not self._calls_under_way:
                self._busy_s += time.monotonic() - self._busy_since

    async def stats(self) -> dict[str, float]:
        """Totals: ``rounds``, ``failures`` (rounds without a verdict), ``busy_s`` (in which it
        judged), and those of the backend (see ``LLMJudge.stats``)."""
        return {
            **self._backend.stats(),
            "rounds": float(self._rounds),
            "failures": float(self._failures),
            "busy_s": self._busy_s,
        }

    async def close(self) -> None:
        """Let go of models and connections."""
        await self._backend.close()

    def _count(self, verdicts: Sequence[Verdict | None]) -> None:
        self._rounds += len(verdicts)
        for verdict in verdicts:
            self._failures += verdict is None
            self._failures_in_a_row = self._failures_in_a_row + 1 if verdict is None else 0
        if self._config.name == "evidence" or self._backend.stats().get("over_budget"):
            return  # as the settings want it
        if 0 < self._config.stop_after_failures <= self._failures_in_a_row:
            why = self._backend.why_not() or "nothing is known of the reason"
            raise StoppedError(
                f"the judge gave no verdict on {self._failures_in_a_row} rounds in a row "
                f"(judge.stop_after_failures); the last time: {why}. Mend it and go on with "
                "resume=auto, or train without a judge: algorithm=grpo"
            )


async def _to_say_garbage() -> bool:
    """The failpoint of judges: fails, waits, or says that the answer is to be garbage."""
    match failpoint("judge"):
        case ["error"]:
            raise RuntimeError("failpoint judge: error")
        case ["slow", seconds]:
            await asyncio.sleep(float(seconds))
        case ["garbage"]:
            return True
    return False


def judge_backend(config: JudgeConfig, secret: bytes) -> JudgeBackend:
    """What ``config.name`` names. Raises UserError for bad settings."""
    budget = Budget(
        tokens=config.budget_tokens / config.num_actors,
        money=config.budget_money / config.num_actors,
        of=f"an actor's share (of {config.num_actors})",
        degrades=config.on_budget == "degrade",
    )
    members = [_backend(member, secret, budget) for member in judge_members(config)]
    return EnsembleJudge(members, _rule(config)) if config.name == "ensemble" else members[0]


def _backend(config: JudgeConfig, secret: bytes, budget: Budget) -> JudgeBackend:
    if config.name == "evidence":
        return EvidenceBackend()
    if config.samples > 1 and config.temperature == 0:
        raise UserError(
            f"judge.samples={config.samples} greedy answers would all be the same; set "
            "judge.temperature above 0 or judge.samples=1"
        )
    return LLMJudge(
        _chat(config),
        read_prompt(config.prompt),
        AskingConfig(
            together=config.rounds == "together",
            temperature=config.temperature,
            samples=config.samples,
            combine=_rule(config),
            max_tokens=config.max_tokens,
            max_attempts=config.max_attempts,
            concurrency=config.concurrency if config.name == "openai" else 0,
        ),
        Usage(budget, price_input=config.price_input, price_output=config.price_output),
        secret=secret,
        cache=VerdictCache(Path(config.cache)) if config.cache else None,
    )


def judge_models(config: JudgeConfig) -> list[JudgeConfig]:
    """The settings of every model that an actor loads itself: its own, or its members'."""
    return [member for member in judge_members(config) if member.name == "vllm"]


def judge_environment(config: JudgeConfig) -> dict[str, str]:
    """Environment variables that an actor needs before it imports anything."""
    models = judge_models(config)
    if not models:
        return {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from actors.engine_chat import judge_engine_environment

    return judge_engine_environment(max(models, key=lambda m: m.threads))


def _chat(config: JudgeConfig) -> Chat:
    if config.name == "openai":
        from actors.openai_chat import OpenAIChat

        return OpenAIChat(config)
    if config.name == "vllm":
        from actors.engine_chat import EngineChat

        return EngineChat(config)
    raise UserError(
        f"judge.name={config.name!r} is unknown; use evidence, openai, vllm or ensemble"
    )


class EvidenceBackend:
    """The rule over known evidence."""

    async def ready(self) -> None:
        """Always."""

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """See ``JudgeBackend``: ``None`` where a question's evidence is unknown."""
        return [judge_by_evidence(trajectory) for trajectory in trajectories]

    async def judge_last(self, trajectory: Trajectory) -> Verdict | None:
        """See ``JudgeBackend``."""
        return judge_by_evidence(trajectory)[-1]

    async def close(self) -> None:
        """Nothing is held."""

    def stats(self) -> dict[str, float]:
        """It costs nothing."""
        return {}

    def why_not(self) -> str:
        """Where evidence is not known, there is no verdict."""
        return ""


def _rule(config: JudgeConfig) -> Any:
    if config.combine not in ("majority", "mean"):
        raise UserError(f"judge.combine={config.combine!r} is unknown; use majority or mean")
    return config.combine
