"""Trajectories and groups made by hand, for the tests of credit assignment and the learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.types import Group, Question, Round, Status, Trajectory, Verdict

__all__ = ["QUESTION", "group", "trajectory"]

QUESTION = Question(id="q", text="who?", answers=("x",))


def trajectory(
    *,
    reward: float,
    verdicts: Sequence[tuple[float, float] | None] = (),
    tokens: Sequence[int] | None = None,
    status: Status = Status.ANSWERED,
    sample_id: int = 0,
    group_id: int = 0,
    context: int = 3,
    version: int = 0,
) -> Trajectory:
    """One search round a verdict ``(u, v)`` (None: judge failed), then the answer round.

    Round ``t`` has ``context`` context tokens and ``tokens[t]`` sampled ones (2 by default).
    """
    num_rounds = len(verdicts) + 1
    lengths = list(tokens) if tokens is not None else [2] * num_rounds
    rng = np.random.default_rng(100 * group_id + sample_id)
    rounds = []
    for t, length in enumerate(lengths):
        judged = verdicts[t] if t < len(verdicts) else None
        rounds.append(
            Round(
                context_ids=rng.integers(1, 60, context).astype(np.int32),
                token_ids=rng.integers(1, 60, length).astype(np.int32),
                logprobs=(-rng.random(length)).astype(np.float32),
                versions=np.full(length, version, np.int32),
                text="",
                query="q" if t < num_rounds - 1 else None,
                answer="x" if t == num_rounds - 1 and status is Status.ANSWERED else None,
                verdict=None
                if judged is None
                else Verdict(utility=judged[0], correctness=judged[1]),
            )
        )
    return Trajectory(
        question=QUESTION,
        group_id=group_id,
        sample_id=sample_id,
        rounds=tuple(rounds),
        status=status,
        reward=reward,
    )


def group(*trajectories: Trajectory, errors: Sequence[str] = ()) -> Group:
    """A group admitted at version 0."""
    return Group(
        group_id=trajectories[0].group_id,
        question=QUESTION,
        trajectories=trajectories,
        admission_version=0,
        errors=tuple(errors),
    )
