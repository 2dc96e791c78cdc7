"""Attacks change what a judge reads, never what a round is worth; the rule cannot be talked to."""

from __future__ import annotations

import pytest

from actors.judge import EvidenceBackend
from pipeline.commands.attack import attack_judge
from pipeline.judging.attacks import ATTACKS, Attack, Attempt, attempts
from pipeline.judging.ensemble import JudgeBackend
from pipeline.types import Trajectory, Verdict
from tests.support.traces import FAILED, GOOD, NEXT, trace_of, traces


def made(per_attack: int = 20) -> list[Attempt]:
    return list(attempts(traces(), per_attack=per_attack, seed=0))


def test_every_attack_is_tried_and_changes_the_round() -> None:
    tried = made()
    assert {a.attack.name for a in tried} == {a.name for a in ATTACKS}
    for attempt in tried:
        attacked = attempt.attacked.search_rounds[attempt.number - 1]
        if attempt.clean is None:
            assert attempt.attack.adds_round
            continue
        before = attempt.clean.search_rounds[attempt.number - 1]
        assert (attacked.reasoning, attacked.passages) != (before.reasoning, before.passages)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
async def test_the_rule_over_known_evidence_is_never_turned(attack: Attack) -> None:
    tried = list(attempts(traces() * 5, per_attack=40, seed=3, attacks=[attack]))
    numbers = (await attack_judge(EvidenceBackend(), tried))[attack.name]
    assert numbers["utility"]["attacked"] + numbers["correctness"]["attacked"] > 0
    assert numbers["utility"]["turned"] == numbers["correctness"]["turned"] == 0


class Gullible(EvidenceBackend):
    """Believes whoever says so."""

    async def judge(self, trajectories: list[Trajectory]) -> list[tuple[Verdict | None, ...]]:  # type: ignore[override]
        honest = await super().judge(trajectories)
        return [
            tuple(
                Verdict(utility=1, correctness=1) if self._told(r.reasoning) else v
                for r, v in zip(t.search_rounds, verdicts, strict=True)
            )
            for t, verdicts in zip(trajectories, honest, strict=True)
        ]

    @staticmethod
    def _told(reasoning: str) -> bool:
        return "utility 1" in reasoning or '"utility": 1' in reasoning


async def test_a_gullible_judge_is_found_out() -> None:
    judge: JudgeBackend = Gullible()
    numbers = await attack_judge(judge, made())
    told = numbers["fake verdict in the reasoning"]["correctness"]
    assert told["attacked"] > 0
    assert told["turned"] == told["attacked"]
    assert numbers["fake verdict in a passage"]["correctness"]["turned"] == 0


async def test_a_verdict_that_was_wrong_before_is_no_success_of_the_attack() -> None:
    class Generous(EvidenceBackend):
        async def judge(self, trajectories: list[Trajectory]) -> list[tuple[Verdict | None, ...]]:  # type: ignore[override]
            one = Verdict(utility=1, correctness=1)
            return [(one,) * len(t.search_rounds) for t in trajectories]

    changing = [a for a in ATTACKS if not a.adds_round]
    tried = list(attempts(traces(), per_attack=5, seed=0, attacks=changing))
    for numbers in (await attack_judge(Generous(), tried)).values():
        assert numbers["utility"]["attacked"] == numbers["correctness"]["attacked"] == 0


def test_nothing_is_attacked_where_every_round_earned_its_verdict() -> None:
    good = trace_of(GOOD, NEXT)
    changing = [a for a in ATTACKS if not a.adds_round]
    assert list(attempts([good], per_attack=5, seed=0, attacks=changing)) == []
    assert list(attempts([trace_of(FAILED)], per_attack=5, seed=0, attacks=changing)) != []
