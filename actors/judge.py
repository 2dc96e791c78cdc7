"""The judge pool's actor: scores the search rounds of trajectories.

Today the rule over known evidence; LLM judges will stand behind the same two methods.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from pipeline.config import JudgeConfig
from pipeline.episode.evidence import flip_verdicts, judge_by_evidence
from pipeline.failpoints import failpoint
from pipeline.types import Trajectory, Verdict

__all__ = ["Judge"]


class Judge:
    """Judges by known evidence. Plain Python; actors/pool.py makes Ray actors of it."""

    def __init__(self, config: JudgeConfig) -> None:
        if config.name != "evidence":
            raise ValueError(f"judge.name={config.name!r} is unknown; use evidence")
        self._flip_probability = config.flip_probability
        self._rounds = self._failures = 0
        self._busy_s = 0.0

    async def ready(self) -> bool:
        """Whether it can take work."""
        return True

    async def judge(self, trajectories: Sequence[Trajectory]) -> list[tuple[Verdict | None, ...]]:
        """For each trajectory one verdict a search round, ``None`` where it cannot be judged."""
        began = time.monotonic()
        match failpoint("judge"):
            case ["error"]:
                raise RuntimeError("failpoint judge: error")
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
            case ["garbage"]:
                return ["garbage" for _ in trajectories]  # type: ignore[misc]
        verdicts = [
            flip_verdicts(t, judge_by_evidence(t), self._flip_probability) for t in trajectories
        ]
        self._rounds += sum(map(len, verdicts))
        self._failures += sum(v is None for judged in verdicts for v in judged)
        self._busy_s += time.monotonic() - began
        return verdicts

    async def stats(self) -> dict[str, float]:
        """Totals: ``rounds``, ``failures`` (rounds without a verdict), ``busy_s``."""
        return {
            "rounds": float(self._rounds),
            "failures": float(self._failures),
            "busy_s": self._busy_s,
        }
