"""A small made-up run, typed and judged by the real rules, for tests of metrics and report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.config import AlgorithmConfig
from pipeline.credit.algorithm import build_algorithm
from pipeline.episode.evidence import judge_by_evidence
from pipeline.evaluation import Evaluation
from pipeline.judging.costs import judge_costs
from pipeline.report import (
    PoolTime,
    ReportData,
    ShownTrajectory,
    choose_trajectories,
)
from pipeline.step_record import StepRecord
from pipeline.summary import build_summary, sensitivity_summary
from pipeline.types import Group, Passage, Question, Round, Sampling, Status, Trajectory

__all__ = ["ALGORITHM", "JUDGE_TOTALS", "episode", "made_up_report", "question", "round_of"]

ALGORITHM = build_algorithm(AlgorithmConfig(alpha=math.inf))
JUDGE_TOTALS = {
    "rounds": 540.0,
    "failures": 3.0,
    "busy_s": 88.0,
    "wait_s": 61.0,
    "calls": 402.0,
    "prompt_tokens": 249_240.0,
    "cached_tokens": 181_000.0,
    "completion_tokens": 24_120.0,
    "money": 0.0616,
    "call_s": 241.2,
    "cache_hits": 141.0,
    "bad_answers": 6.0,
}

_PEOPLE = ("Ada Lindqvist", "Bruno Okafor", "Carla Nowak", "Deniz Arslan", "Emeka Eze")
_CITIES = ("Karlova", "Port Amsel", "Tiraspel", "Nakuri", "Vellmar")
_RIVERS = ("Ostra", "Limpo", "Dravina", "Selke", "Morava")


def question(number: int, hops: int) -> Question:
    """A question of ``hops`` hops with its plan and evidence."""
    i = number % len(_PEOPLE)
    parts = (
        (f"{_PEOPLE[i]} birthplace", _CITIES[i]),
        (f"{_CITIES[i]} river", _RIVERS[i]),
        (f"{_RIVERS[i]} length", f"{100 + 7 * number} km"),
    )[:hops]
    texts = {
        1: f"In which city was {_PEOPLE[i]} born?",
        2: f"Which river flows through the city where {_PEOPLE[i]} was born?",
        3: f"How long is the river that flows through the birthplace of {_PEOPLE[i]}?",
    }
    return Question(
        id=f"test-{number:04d}",
        text=texts[hops],
        answers=(parts[-1][1],),
        evidence=tuple(f"{number}-{h}" for h in range(hops)),
        metadata={"hops": hops, "plan": [{"query": q, "answer": a} for q, a in parts]},
    )


def round_of(
    *,
    query: str | None = None,
    answer: str | None = None,
    reasoning: str = "",
    passages: Sequence[Passage] = (),
    num_tokens: int = 12,
    version: int = 0,
) -> Round:
    """A round whose tokens are numbers from 0."""
    return Round(
        context_ids=np.arange(5, dtype=np.int32),
        token_ids=np.arange(num_tokens, dtype=np.int32),
        logprobs=np.full(num_tokens, -0.5, dtype=np.float32),
        versions=np.full(num_tokens, version, dtype=np.int32),
        text=f"{reasoning} {query or answer or ''}",
        reasoning=reasoning,
        query=query,
        answer=answer,
        passages=tuple(passages),
    )


def episode(
    q: Question, *, sample_id: int = 0, group_id: int = 0, skill: float = 1.0
) -> Trajectory:
    """``skill`` below 1 wastes a search; below 0.5 it answers too early and wrongly."""
    assert q.evidence is not None and q.hops is not None
    rounds: list[Round] = []
    plan = q.metadata["plan"]
    for hop in range(q.hops if skill >= 0.5 else max(1, q.hops - 1)):
        found = Passage(
            doc_id=q.evidence[hop],
            title=plan[hop]["query"].rsplit(" ", 1)[0],
            text=f"The {plan[hop]['query']} is {plan[hop]['answer']}, as the gazetteer says.",
            score=0.8,
        )
        near = Passage(
            doc_id=f"near-{q.id}-{hop}",
            title="A namesake",
            text="A place of nearly the same name, in another country.",
            score=0.7,
        )
        reasoning = (
            f"First I need the {plan[hop]['query']}." if hop == 0 else "One fact is missing."
        )
        again = skill < 1 and hop == 0
        for _ in range(2 if again and q.hops < 3 else 1):
            rounds.append(
                round_of(query=str(plan[hop]["query"]), reasoning=reasoning, passages=(found, near))
            )
    answer = q.answers[0] if skill >= 0.5 else "Karlsruhe"
    rounds.append(round_of(answer=answer, reasoning="Now I can answer.", num_tokens=8))
    return Trajectory(
        question=q,
        group_id=group_id,
        sample_id=sample_id,
        rounds=tuple(rounds),
        status=Status.ANSWERED,
        reward=float(answer == q.answers[0]),
    )


def _evaluation(name: str, skill: float, samples: int, temperature: float, n: int) -> Evaluation:
    random = np.random.default_rng(int(100 * skill))
    played = []
    for number in range(n):
        q = question(number, hops=1 + number % 3)
        skills = random.uniform(skill - 0.6, skill + 0.6, samples)
        played.append(
            tuple(
                episode(q, sample_id=s, group_id=number, skill=float(x))
                for s, x in enumerate(skills)
            )
        )
    return Evaluation(
        name=name, trajectories=tuple(played), sampling=Sampling(temperature=temperature)
    )


def _records(steps: int) -> list[StepRecord]:
    random = np.random.default_rng(0)
    records = []
    for step in range(1, steps + 1):
        done = step / steps
        noise = random.normal(0, 0.03, 8)
        metrics = {
            "reward/mean": 0.35 + 0.3 * done + noise[0],
            "reward/exact_match": 0.35 + 0.3 * done + noise[0],
            "rollout/searches_per_question": 2.6 - 0.5 * done + 3 * noise[1],
            "rollout/redundant_searches": max(0.0, 0.3 - 0.22 * done + noise[2]),
            "rollout/evidence_recall": 0.6 + 0.25 * done + noise[3],
            "rollout/no_answer": max(0.0, 0.12 - 0.1 * done + noise[4] / 2),
            "rollout/tokens_per_trajectory": 88 - 9 * done + 60 * noise[5],
            "buffer/staleness_mean": 0.9 if step > 1 else 0.0,
            "buffer/staleness_max": 1.0 if step > 1 else 0.0,
            "buffer/filtered": float(random.poisson(5 + 6 * done)),
            "buffer/failed": 0.0,
            "learner/loss": noise[6] / 5,
            "learner/grad_norm": 0.6 + abs(noise[7]) * 6,
            "learner/entropy": 0.55 - 0.2 * done + noise[5] / 4,
            "learner/update_s": 11 + 20 * noise[1],
            "learner/wait_s": 4 + abs(40 * noise[2]),
            "judge/wait_s": 1.5 + abs(10 * noise[1]),
            "judge/canary_u_agreement": min(1.0, 0.94 + noise[0]) if step > 2 else math.nan,
            "judge/canary_v_agreement": min(1.0, 0.96 + noise[3]) if step > 2 else math.nan,
        }
        if step % 10 == 0:
            metrics["evaluate/exact_match"] = 0.4 + 0.28 * done
        records.append(StepRecord(step=step, version=step, elapsed_s=16.0 * step, metrics=metrics))
    return records


def _judged(played: Sequence[Trajectory]) -> Group:
    """A question's trajectories as a group, judged by the real rule."""
    return Group(
        group_id=played[0].group_id,
        question=played[0].question,
        trajectories=tuple(t.with_verdicts(judge_by_evidence(t)) for t in played),
        admission_version=0,
    )


def _shown(before: Evaluation, after: Evaluation, count: int) -> list[ShownTrajectory]:
    """Judged and credited by the real rules, each within its group."""
    evaluations = {"before": before, "after": after}
    shown = []
    for chosen in choose_trajectories(before.flat(), after.flat(), count=count):
        group = _judged(evaluations[chosen.phase].trajectories[chosen.trajectory.group_id])
        sample = chosen.trajectory.sample_id
        credit = ALGORITHM.credit([group]).trajectories[sample] if group.has_signal else None
        shown.append(
            ShownTrajectory(
                trajectory=group.trajectories[sample],
                credit=credit,
                phase=chosen.phase,
                judged_for_report=True,
            )
        )
    return shown


def made_up_report(*, steps: int = 40, questions: int = 90, count: int = 8) -> ReportData:
    """All that the page shows, of a run that was never made."""
    before = _evaluation("test", 0.35, 1, 0.0, questions)
    after = _evaluation("test", 0.8, 1, 0.0, questions)
    before_sampled = _evaluation("test", 0.3, 8, 1.0, questions // 3)
    after_sampled = _evaluation("test", 0.7, 8, 1.0, questions // 3)
    trained = ALGORITHM.credit([_judged(g) for g in after_sampled.trajectories]).trajectories
    staleness = {0: 41_200, 1: 371_000}
    records = _records(steps)
    summary = build_summary(
        profile="cpu",
        algorithm="cw_grpo",
        seed=0,
        steps=steps,
        seconds={"setup": 71.2, "train": 16.0 * steps, "evaluate": 96.0},
        before=before,
        after=after,
        before_sampled=before_sampled,
        after_sampled=after_sampled,
        staleness_tokens=staleness,
        trained_tokens=sum(staleness.values()),
        trajectories_per_s=13.4,
        sensitivity=sensitivity_summary(ALGORITHM, trained),
        judge=judge_costs(JUDGE_TOTALS, trajectories=16 * steps),
    )
    return ReportData(
        summary=summary,
        algorithm=ALGORITHM,
        records=records,
        before=before,
        after=after,
        before_sampled=before_sampled,
        after_sampled=after_sampled,
        shown=_shown(before_sampled, after_sampled, count),
        pools=(
            PoolTime(name="rollout", busy_s=410.0),
            PoolTime(name="retriever", busy_s=190.0),
            PoolTime(name="judge", busy_s=JUDGE_TOTALS["busy_s"]),
            PoolTime(name="learner", busy_s=455.0, waiting_s=150.0),
        ),
        train_s=16.0 * steps,
        staleness_tokens=staleness,
        config_yaml="profile: cpu\ntrainer:\n  steps: 40\n",
        versions=summary["versions"],
    )
