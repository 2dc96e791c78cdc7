"""What a run measures: every metric's name and meaning, and pure measures of trajectories.

``METRICS`` is the registry that docs/metrics.md prints; a test compares both with the code.
The functions below it go from trajectories to numbers; pipeline/step_record.py records them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.credit.off_policy import STALENESS_BINS
from pipeline.types import Round, Status, Trajectory

__all__ = [
    "METRICS",
    "Metric",
    "evaluation_metrics",
    "evidence_recall",
    "exact_match",
    "judge_metrics",
    "metrics_table",
    "no_answer_share",
    "redundant_rounds",
    "redundant_searches",
    "retrieved_rounds",
    "searches_per_question",
    "staleness_counts",
    "staleness_metrics",
    "tokens_per_trajectory",
    "trajectory_metrics",
]


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of docs/metrics.md: what a number means, its unit and who measures it."""

    description: str
    unit: str
    source: str


_FINISHED = "over every trajectory that finished since the last step, filtered groups included"

_OFF_POLICY = {
    "effective_sample_size": (
        "(sum r)^2 / (P sum r^2) with r = proximal over sampler at correction.level, before it "
        "is cut",
        "share",
    ),
    "correction_cut_fraction": ("trained tokens whose factor was truncated or masked", "share"),
    "correction_factor_mean": ("factor of the off-policy correction, mean", "1"),
    "clip_fraction": ("trained tokens whose gradient the clip cut", "share"),
    "sampler_ratio_p01": ("ratio of a token, current over sampler: 1st percentile", "1"),
    "sampler_ratio_p50": ("the same, median", "1"),
    "sampler_ratio_p99": ("the same, 99th percentile", "1"),
    "level_ratio_p01": (
        "proximal over sampler at correction.level, before it is cut: 1st percentile",
        "1",
    ),
    "level_ratio_p50": ("the same at that level, median", "1"),
    "level_ratio_p99": ("the same at that level, 99th percentile", "1"),
}


def _upper(low: int, high: int) -> str:
    if high == low:
        return ""
    return " and more" if high > 1000 else f" to {high}"


_OVER = {
    "": "",
    **{
        f"_stale_{name}": f"; tokens of staleness {low}" + _upper(low, high)
        for name, (low, high) in STALENESS_BINS.items()
    },
}

METRICS: dict[str, Metric] = {
    "reward/mean": Metric(f"mean outcome reward {_FINISHED}", "reward", "driver"),
    "reward/exact_match": Metric(f"share answered correctly {_FINISHED}", "share", "driver"),
    "rollout/trajectories": Metric(
        "trajectories that finished since the last step", "count", "driver"
    ),
    "rollout/searches_per_question": Metric(
        "queries issued in a trajectory, mean", "queries", "driver"
    ),
    "rollout/redundant_searches": Metric(
        "search rounds that returned no passage their trajectory had not seen before, "
        "over all search rounds",
        "share",
        "driver",
    ),
    "rollout/evidence_recall": Metric(
        "share of a question's evidence passages that its trajectory retrieved, mean "
        "(left out where no evidence is known)",
        "share",
        "driver",
    ),
    "rollout/no_answer": Metric("trajectories that end without an answer", "share", "driver"),
    "rollout/truncated": Metric("trajectories that hit a token limit", "share", "driver"),
    "rollout/tokens_per_trajectory": Metric("tokens the policy sampled, mean", "tokens", "driver"),
    "rollout/trajectories_per_s": Metric(
        "trajectories finished since the last step over the time since then", "1/s", "driver"
    ),
    "buffer/wait_s": Metric(
        "time from a group's end (its verdicts are there) to the train step that takes it, mean "
        "over the trained groups",
        "s",
        "buffer",
    ),
    "buffer/staleness_mean": Metric(
        "version that the train step starts from minus version a token was sampled with, "
        "mean over the trained tokens",
        "publishes",
        "driver",
    ),
    "buffer/staleness_max": Metric(
        "the same, largest over the trained tokens", "publishes", "driver"
    ),
    "buffer/filtered": Metric(
        "groups without reward variance since the last step: no learning signal", "groups", "buffer"
    ),
    "rollout/aborted": Metric(
        "samples of finished groups that were still going on when the group was full "
        "(buffer.oversample)",
        "count",
        "driver",
    ),
    "buffer/skipped": Metric(
        "questions that the curriculum passed over since the last step", "questions", "driver"
    ),
    "buffer/failed": Metric(
        "groups lost to infrastructure failures since the last step", "groups", "buffer"
    ),
    "buffer/failed_trajectories": Metric(
        "trajectories lost to infrastructure failures since the last step, whole groups or not",
        "count",
        "driver",
    ),
    "buffer/in_flight": Metric(
        "groups admitted and not yet trained on or dropped", "groups", "buffer"
    ),
    "buffer/depth": Metric(
        "finished groups that were left in the buffer when the step began", "groups", "buffer"
    ),
    "judge/rounds": Metric("search rounds of this step's batch with a verdict", "rounds", "driver"),
    "judge/wasted_rounds": Metric(
        "rounds judged early (judge.early) since the last step that the algorithm did not need",
        "rounds",
        "driver",
    ),
    "judge/failures": Metric(
        "search rounds without a verdict in trajectories of the batch that needed one",
        "rounds",
        "credit",
    ),
    "judge/wait_s": Metric(
        "the learner waited for groups, and judges had all that its step still lacked",
        "s",
        "driver",
    ),
    "judge/calls": Metric(
        "answers of a language model as judge, since the last step", "calls", "judge"
    ),
    "judge/prompt_tokens": Metric("tokens of their prompts", "tokens", "judge"),
    "judge/cached_tokens": Metric(
        "of these, tokens that a prefix cache held already", "tokens", "judge"
    ),
    "judge/completion_tokens": Metric("tokens of the answers", "tokens", "judge"),
    "judge/money": Metric(
        "what they cost, by judge.price_input and judge.price_output", "money", "judge"
    ),
    "judge/call_s": Metric("seconds between question and answer, summed over calls", "s", "judge"),
    "judge/cache_hits": Metric(
        "rounds whose verdict was known: in judge.cache, or just asked for", "rounds", "judge"
    ),
    "judge/bad_answers": Metric(
        "answers that were no verdict, and were asked again", "calls", "judge"
    ),
    "judge/failed_calls": Metric("calls without an answer, after all retries", "calls", "judge"),
    "judge/over_budget": Metric(
        "calls (once the whole run is over it: rounds) that were not made because "
        "judge.budget_tokens or judge.budget_money was spent",
        "calls",
        "judge",
    ),
    "judge/canary_rounds": Metric(
        "rounds with known labels judged since the last step (judge.canaries)", "rounds", "judge"
    ),
    "judge/canary_u_agreement": Metric(
        "share of the last judge.canary_window canary rounds whose u is that of the label",
        "share",
        "judge",
    ),
    "judge/canary_v_agreement": Metric("the same of v", "share", "judge"),
    "judge/canary_alarm": Metric(
        "1 while agreement with the canaries is an alarm (judge.canary_alarm)", "0 or 1", "judge"
    ),
    "judge/u_mean": Metric("retrieval utility u, mean over the judged rounds", "share", "driver"),
    "judge/v_mean": Metric(
        "reasoning correctness v, mean over the judged rounds", "share", "driver"
    ),
    "judge/p_mean": Metric("contribution p = u v, mean over the judged rounds", "share", "driver"),
    "credit/success_share": Metric(
        "trajectories of the batch with outcome reward 1 and a positive advantage",
        "share",
        "credit",
    ),
    "credit/zero_advantage_share": Metric(
        "trajectories of the batch with advantage 0", "share", "credit"
    ),
    "credit/token_summed_credit": Metric(
        "sum of the advantages over a trajectory's tokens, mean: weights keep the mean over "
        "rounds, not this",
        "advantage x tokens",
        "credit",
    ),
    "credit/token_summed_credit_successes": Metric(
        "the same over successes alone", "advantage x tokens", "credit"
    ),
    "credit/verdict_failures": Metric(
        "search rounds without a verdict in trajectories that the algorithm needs judged",
        "rounds",
        "credit",
    ),
    "credit/failed_verdict_share": Metric(
        "trajectories that needed verdicts and miss one: they keep uniform weights, or as "
        "algorithm.failed_verdict says",
        "share",
        "credit",
    ),
    "credit/no_contribution_share": Metric(
        "fully judged successes in which no round contributed (see algorithm.no_contribution)",
        "share",
        "credit",
    ),
    "credit/contributing_rounds_share": Metric(
        "search rounds of fully judged successes with p > 0", "share", "credit"
    ),
    "credit/contribution_concentration": Metric(
        "largest share of one search round in the sum of a success's contributions, mean over "
        "successes with at least two rounds of which one contributed: 1 is all in one round",
        "share",
        "credit",
    ),
    "learner/wait_s": Metric("time the learner waited for a full batch of groups", "s", "driver"),
    "learner/update_s": Metric("time of the optimizer step, forward and backward", "s", "learner"),
    "learner/loss": Metric("policy loss of the batch, before the update", "1", "learner"),
    "learner/grad_norm": Metric("norm of the gradient before clipping", "1", "learner"),
    "learner/lr": Metric("learning rate of the step", "1", "learner"),
    "learner/trained_tokens": Metric("policy tokens of the batch", "tokens", "learner"),
    "learner/entropy": Metric(
        "entropy of the policy's next-token distribution at the sampling temperature, mean over "
        "the trained tokens",
        "nats",
        "learner",
    ),
    "learner/ratio_mean": Metric(
        "probability ratio current over old policy, mean over the trained tokens", "1", "learner"
    ),
    "learner/ratio_max": Metric("the same, largest", "1", "learner"),
    "learner/approx_kl": Metric(
        "KL(old || current) by the k3 estimator, mean over the trained tokens", "nats", "learner"
    ),
    "learner/kl_reference": Metric(
        "KL(current || reference) by algorithm.kl_estimator, mean over the trained tokens; 0 "
        "where the loss has no KL term",
        "nats",
        "learner",
    ),
    "learner/logprob_difference_mean": Metric(
        "absolute difference of log-probabilities, learner before the update against the sampler "
        "at sampling time, mean over the trained tokens: staleness and numerics together",
        "nats",
        "learner",
    ),
    "learner/logprob_difference_max": Metric("the same, largest", "nats", "learner"),
    "publish/seconds": Metric(
        "time to move the weights to every engine and prove them", "s", "publisher"
    ),
    "publish/stall_s": Metric("longest stand-still of generation in one engine", "s", "publisher"),
    "publish/probe_error": Metric(
        "largest difference of log-probabilities, engine against learner, on the probe prompt",
        "nats",
        "publisher",
    ),
    "evaluate/exact_match": Metric(
        "share of trainer.evaluate_on answered correctly, after the steps that "
        "trainer.evaluate_every and trainer.evaluate_at say",
        "share",
        "driver",
    ),
    "evaluate/redundant_searches": Metric(
        "rollout/redundant_searches on those questions", "share", "driver"
    ),
    "evaluate/searches_per_question": Metric(
        "queries issued on one of those questions, mean", "queries", "driver"
    ),
    "step/seconds": Metric("wall time since the previous step ended", "s", "driver"),
}
METRICS.update(
    {
        f"learner/{name}{suffix}": Metric(meaning + over, unit, "learner")
        for suffix, over in _OVER.items()
        for name, (meaning, unit) in _OFF_POLICY.items()
    }
)


def metrics_table() -> str:
    """The table of docs/metrics.md, in Markdown."""
    lines = ["| metric | unit | measured by | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{name}` | {m.unit} | {m.source} | {m.description} |"
        for name, m in sorted(METRICS.items())
    ]
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    """The mean, NaN of nothing."""
    collected = list(values)
    return sum(collected) / len(collected) if collected else math.nan


def exact_match(trajectories: Sequence[Trajectory]) -> float:
    """Share of trajectories whose answer is one of the golden ones; NaN of none."""
    return _mean(float(t.correct) for t in trajectories)


def searches_per_question(trajectories: Sequence[Trajectory]) -> float:
    """Mean number of queries issued; NaN of none."""
    return _mean(float(t.num_searches) for t in trajectories)


def no_answer_share(trajectories: Sequence[Trajectory]) -> float:
    """Share of trajectories that end without an answer; NaN of none."""
    return _mean(float(t.status is not Status.ANSWERED) for t in trajectories)


def tokens_per_trajectory(trajectories: Sequence[Trajectory]) -> float:
    """Mean number of tokens that the policy sampled; NaN of none."""
    return _mean(float(t.num_policy_tokens) for t in trajectories)


def retrieved_rounds(trajectory: Trajectory) -> tuple[Round, ...]:
    """The rounds whose query went to the retriever.

    A query in the last allowed round is never searched; one whose observation no longer fitted
    (truncated) was, and shows by its passages.
    """
    *earlier, last = trajectory.rounds
    searched = [r for r in earlier if r.query is not None]
    return (*searched, last) if last.query is not None and last.passages else tuple(searched)


def redundant_rounds(trajectory: Trajectory) -> tuple[bool, ...]:
    """For each of ``retrieved_rounds``: did it return nothing that was not seen before?

    With passages a, b in round 1, b, a in round 2 and b, c in round 3 the answer is
    ``(False, True, False)``. A round that returned no passage at all is redundant.
    """
    seen: set[str] = set()
    flags = []
    for search in retrieved_rounds(trajectory):
        found = {p.doc_id for p in search.passages}
        flags.append(found <= seen)
        seen |= found
    return tuple(flags)


def redundant_searches(trajectories: Sequence[Trajectory]) -> float:
    """Redundant rounds over all search rounds of the set (by rounds); NaN of none."""
    return _mean(float(flag) for t in trajectories for flag in redundant_rounds(t))


def evidence_recall(trajectory: Trajectory) -> float:
    """Share of the question's evidence passages that it retrieved; NaN where none is known."""
    evidence = set(trajectory.question.evidence or ())
    if not evidence:
        return math.nan
    found = {p.doc_id for r in trajectory.rounds for p in r.passages}
    return len(evidence & found) / len(evidence)


def staleness_counts(trajectories: Sequence[Trajectory], train_version: int) -> Counter[int]:
    """Sampled tokens by staleness, ``train_version`` - version of the token.

    ``train_version`` is the version that the train step starts from: tokens sampled with it
    have staleness 0. Counters of several steps add up.
    """
    counts: Counter[int] = Counter()
    for trajectory in trajectories:
        for played in trajectory.rounds:
            ages, numbers = np.unique(train_version - played.versions, return_counts=True)
            for age, number in zip(ages.tolist(), numbers.tolist(), strict=True):
                counts[int(age)] += int(number)
    return counts


def staleness_metrics(counts: Mapping[int, int]) -> dict[str, float]:
    """``buffer/staleness_mean`` and ``_max`` of tokens counted by staleness."""
    tokens = sum(counts.values())
    if not tokens:
        return {}
    mean = sum(age * number for age, number in counts.items()) / tokens
    return {"buffer/staleness_mean": mean, "buffer/staleness_max": float(max(counts))}


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The ``reward/`` and ``rollout/`` metrics of finished trajectories; NaN is left out."""
    recalls = [r for r in map(evidence_recall, trajectories) if not math.isnan(r)]
    metrics = {
        "reward/mean": _mean(t.reward for t in trajectories),
        "reward/exact_match": exact_match(trajectories),
        "rollout/trajectories": float(len(trajectories)),
        "rollout/searches_per_question": searches_per_question(trajectories),
        "rollout/redundant_searches": redundant_searches(trajectories),
        "rollout/evidence_recall": _mean(recalls),
        "rollout/no_answer": no_answer_share(trajectories),
        "rollout/truncated": _mean(float(t.status is Status.TRUNCATED) for t in trajectories),
        "rollout/tokens_per_trajectory": tokens_per_trajectory(trajectories),
    }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def evaluation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The ``evaluate/`` metrics of an evaluation during training; NaN is left out."""
    metrics = {
        "evaluate/exact_match": exact_match(trajectories),
        "evaluate/redundant_searches": redundant_searches(trajectories),
        "evaluate/searches_per_question": searches_per_question(trajectories),
    }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def judge_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """``judge/rounds``, ``u_mean``, ``v_mean``, ``p_mean`` of the rounds with a verdict."""
    verdicts = [r.verdict for t in trajectories for r in t.search_rounds if r.verdict is not None]
    if not verdicts:
        return {"judge/rounds": 0.0}
    return {
        "judge/rounds": float(len(verdicts)),
        "judge/u_mean": _mean(v.utility for v in verdicts),
        "judge/v_mean": _mean(v.correctness for v in verdicts),
        "judge/p_mean": _mean(v.contribution for v in verdicts),
    }
