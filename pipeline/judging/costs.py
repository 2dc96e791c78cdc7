"""What judging costs: a pool's totals, for one judged round, for 1,000 trajectories.

Names are those of ``LLMJudge.stats`` and of the judge actor, and ``wait_s``: seconds that the
learner waited for judges alone. A total that a judge does not have is one it never added to: 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["MODEL_COSTS", "MODEL_EVENTS", "asked_a_model", "judge_costs"]

#: Totals of a judge that asks a model: what makes sense for a round, and how often what else
#: happened.
MODEL_COSTS = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "call_s", "money")
MODEL_EVENTS = ("cache_hits", "bad_answers", "failed_calls", "over_budget")

_OF_ROUNDS = ("rounds", "failures", "busy_s", "wait_s")
_OF_MODELS = (*MODEL_COSTS, *MODEL_EVENTS)
_COSTS = ("calls", "prompt_tokens", "completion_tokens", "money", "call_s", "busy_s", "wait_s")


def judge_costs(totals: Mapping[str, float], trajectories: int) -> dict[str, Any]:
    """All totals, and ``per_round`` and ``per_1000_trajectories``: each cost over the rounds that
    got a verdict, and over the ``trajectories`` that were played meanwhile.

    ``None`` stands for what nobody can tell: ``money`` of tokens without prices, and costs of a
    round where none got a verdict.

    >>> costs = judge_costs({"rounds": 4, "calls": 2, "prompt_tokens": 100, "money": 0.5}, 20)
    >>> costs["calls"], costs["failed_calls"], costs["per_round"]["prompt_tokens"]
    (2.0, 0.0, 25.0)
    >>> costs["per_1000_trajectories"]["money"]
    25.0
    """
    counted: dict[str, float] = dict.fromkeys((*_OF_ROUNDS, *_OF_MODELS), 0.0)
    counted |= {name: float(total) for name, total in totals.items()}
    costs: dict[str, float | None] = {name: counted[name] for name in _COSTS}
    if not counted["money"] and counted["prompt_tokens"] + counted["completion_tokens"]:
        costs["money"] = None
    judged = counted["rounds"] - counted["failures"]
    return {
        **counted,
        "money": costs["money"],
        "trajectories": trajectories,
        "per_round": _over(costs, judged),
        "per_1000_trajectories": _over(costs, trajectories / 1000),
    }


def asked_a_model(costs: Mapping[str, Any]) -> bool:
    """Whether a language model stood behind the judge, which was asked or would have been."""
    return any(costs[name] for name in _OF_MODELS)


def _over(costs: Mapping[str, float | None], number: float) -> dict[str, float | None] | None:
    if number <= 0:
        return None
    return {name: None if cost is None else cost / number for name, cost in costs.items()}
