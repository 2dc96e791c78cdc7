"""The data that travels through the pipeline: frozen, checked when made, numpy only.

Legend of dimensions used here and in the maths files:

    G  trajectories of a group        T  rounds of a trajectory
    S  search rounds of a trajectory  N  tokens the policy sampled in one round
    C  context tokens of one round    L  tokens of a whole trajectory, flat

A value at position ``t`` of a flat ``[L]`` array belongs to token ``t``; the model predicts
token ``t`` from the tokens before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

__all__ = [
    "Generation",
    "Group",
    "Passage",
    "Purpose",
    "Question",
    "RolloutRequest",
    "Round",
    "Sample",
    "Sampling",
    "Status",
    "Trajectory",
    "Verdict",
    "VerdictNeed",
]


class Status(StrEnum):
    """How a trajectory ended."""

    ANSWERED = "answered"  # the last round holds an answer tag
    NO_ACTION = "no_action"  # the last round holds neither a query nor an answer
    TRUNCATED = "truncated"  # a round or the whole trajectory hit its token limit
    OUT_OF_ROUNDS = "out_of_rounds"  # the last allowed round searched instead of answering


class Purpose(StrEnum):
    """What a rollout is for: only TRAIN rollouts reach the learner."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    REPORT = "report"  # judged only to be shown to a person
    CANARY = "canary"  # a trace with known labels, to watch the judge with


class VerdictNeed(StrEnum):
    """Which trajectories an algorithm needs judged (nothing else is judged for it)."""

    NONE = "none"
    WINNERS = "winners"  # successes of groups with reward variance
    MIXED_GROUPS = "mixed_groups"  # every trajectory of groups with reward variance
    ALL = "all"


def _check_array(owner: str, name: str, value: np.ndarray, dtype: Any, length: int) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{owner}.{name} must be a numpy array, got {type(value).__name__}")
    if value.dtype != np.dtype(dtype):
        raise TypeError(f"{owner}.{name} must have dtype {np.dtype(dtype)}, got {value.dtype}")
    if value.shape != (length,):
        raise ValueError(f"{owner}.{name} must have shape ({length},), got {value.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question with its golden answers.

    ``evidence`` holds the ids of the supporting passages, ``None`` where nobody knows them;
    ``forbidden`` those of passages that must not be found for it (they would give it away).
    ``metadata`` keeps whatever else the question file held (``hops``, ``type``, ``plan`` ...).
    """

    id: str
    text: str
    answers: tuple[str, ...]
    source: str = ""
    evidence: tuple[str, ...] | None = None
    forbidden: frozenset[str] = frozenset()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"question {self.id!r} has an empty text")
        if not self.answers:
            raise ValueError(f"question {self.id!r} has no golden answers")

    @property
    def hops(self) -> int | None:
        """Number of hops, where the question file says it."""
        hops = self.metadata.get("hops")
        return None if hops is None else int(hops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One retrieved passage. ``score`` is the retriever's similarity (higher is nearer)."""

    doc_id: str
    title: str
    text: str
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's two signals on one search round, each in ``[0, 1]``.

    A round that was not judged, or whose judge failed, has ``None`` in place of a verdict.
    """

    utility: float
    correctness: float
    rationale: str = ""

    def __post_init__(self) -> None:
        for name in ("utility", "correctness"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"Verdict.{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def contribution(self) -> float:
        """``p_t = u_t * v_t`` (CW-GRPO, section on contribution weights)."""
        return self.utility * self.correctness


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are sampled. ``temperature`` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    max_round_tokens: int = 128  # most tokens the policy may sample in one round


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine returns for one prompt: the sampled tokens, exactly as sampled.

    ``logprobs`` are those of the distribution the token was drawn from (temperature applied);
    ``versions`` is the weight version every single token was sampled with.
    ``stopped`` is False where the token limit ended it.
    """

    token_ids: np.ndarray  # int32[N]
    logprobs: np.ndarray  # float32[N]
    versions: np.ndarray  # int32[N]
    stopped: bool

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        _check_array("Generation", "token_ids", self.token_ids, np.int32, n)
        _check_array("Generation", "logprobs", self.logprobs, np.float32, n)
        _check_array("Generation", "versions", self.versions, np.int32, n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: the context appended before it, then what the policy sampled.

    A search round has a ``query`` and the ``passages`` it retrieved; an answer round has an
    ``answer``. ``text`` is the sampled tokens decoded, for people, rewards and judges; nothing
    is ever encoded again from it.
    """

    context_ids: np.ndarray  # int32[C], appended before this round's generation
    token_ids: np.ndarray  # int32[N]
    logprobs: np.ndarray  # float32[N]
    versions: np.ndarray  # int32[N]
    text: str
    reasoning: str = ""
    query: str | None = None
    answer: str | None = None
    passages: tuple[Passage, ...] = ()
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        _check_array("Round", "context_ids", self.context_ids, np.int32, len(self.context_ids))
        n = len(self.token_ids)
        _check_array("Round", "token_ids", self.token_ids, np.int32, n)
        _check_array("Round", "logprobs", self.logprobs, np.float32, n)
        _check_array("Round", "versions", self.versions, np.int32, n)
        if self.query is not None and self.answer is not None:
            raise ValueError("a round has a query or an answer, not both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One episode of one question.

    ``rounds[:-1]`` are the search rounds (S = T - 1). A trajectory that never answered has its
    last round treated as the answer round, whatever that round did.
    """

    question: Question
    group_id: int
    sample_id: int
    rounds: tuple[Round, ...]
    status: Status
    reward: float
    purpose: Purpose = Purpose.TRAIN
    seconds: Mapping[str, float] = field(default_factory=dict)  # generate, retrieve, total

    def __post_init__(self) -> None:
        if not self.rounds:
            raise ValueError("a trajectory has at least one round")

    @property
    def search_rounds(self) -> tuple[Round, ...]:
        """The S = T - 1 rounds that contribution weights are for."""
        return self.rounds[:-1]

    @property
    def num_searches(self) -> int:
        """Queries issued, counting one in the last round of a trajectory that ran out."""
        return sum(r.query is not None for r in self.rounds)

    @property
    def answer(self) -> str | None:
        """The answer given, ``None`` where there is none."""
        return self.rounds[-1].answer

    @property
    def correct(self) -> bool:
        """Outcome reward of exactly 1 (shaping never makes a wrong answer correct)."""
        return self.status is Status.ANSWERED and self.reward >= 1.0

    @property
    def num_policy_tokens(self) -> int:
        """Tokens that the policy sampled."""
        return sum(len(r.token_ids) for r in self.rounds)

    @property
    def num_tokens(self) -> int:
        """All tokens, L: context and sampled."""
        return sum(len(r.context_ids) + len(r.token_ids) for r in self.rounds)

    def flat_token_ids(self) -> np.ndarray:
        """int32[L]: exactly the tokens the engine saw and sampled, in order."""
        return np.concatenate([a for r in self.rounds for a in (r.context_ids, r.token_ids)])

    def oldest_version(self) -> int:
        """The oldest weight version that any of its tokens was sampled with."""
        return min(int(r.versions.min()) for r in self.rounds if len(r.versions))

    def without_verdicts(self) -> Trajectory:
        """Itself where it has none, else a copy without."""
        if all(r.verdict is None for r in self.rounds):
            return self
        return replace(self, rounds=tuple(replace(r, verdict=None) for r in self.rounds))

    def with_verdicts(self, verdicts: Sequence[Verdict | None]) -> Trajectory:
        """A copy with one verdict a search round. Raises ValueError on another length."""
        if len(verdicts) != len(self.search_rounds):
            raise ValueError(
                f"{len(verdicts)} verdicts for {len(self.search_rounds)} search rounds"
            )
        judged = tuple(
            replace(r, verdict=v) for r, v in zip(self.search_rounds, verdicts, strict=True)
        )
        return replace(self, rounds=(*judged, self.rounds[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """A group to be rolled out: ``num_samples`` trajectories of one question, of which the first
    ``keep`` that end are the group (0: all) and the others are aborted."""

    question: Question
    group_id: int
    num_samples: int
    admission_version: int
    sampling: Sampling
    keep: int = 0
    purpose: Purpose = Purpose.TRAIN
    allow_search: bool = True  # False: the policy must answer at once, from memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories of one question, and the errors of those that failed.

    ``errors`` are infrastructure failures (never reward 0); such samples are left out of the
    baseline. ``admission_version`` is the weight version at which the group was admitted.
    """

    group_id: int
    question: Question
    trajectories: tuple[Trajectory, ...]
    admission_version: int
    errors: tuple[str, ...] = ()
    aborted: int = 0  # samples that were still going on when the group was full

    def __post_init__(self) -> None:
        if not self.trajectories and not self.errors:
            raise ValueError("a group has trajectories or errors")

    @property
    def rewards(self) -> np.ndarray:
        """float64[G]: one reward a trajectory."""
        return np.array([t.reward for t in self.trajectories], dtype=np.float64)

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ (a zero-variance group has no learning signal)."""
        rewards = self.rewards
        return len(rewards) > 1 and bool((rewards != rewards[0]).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the learner sees of a trajectory: flat arrays, blind to the algorithm.

    ``advantages`` and ``loss_weights`` are zero wherever ``loss_mask`` is False.
    The loss of a batch is ``sum(mask * loss_weights * token_loss) / normaliser``.
    """

    token_ids: np.ndarray  # int32[L]
    loss_mask: np.ndarray  # bool[L], True on tokens that the policy sampled
    round_ids: np.ndarray  # int16[L], round of a sampled token, -1 elsewhere
    sampler_logprobs: np.ndarray  # float32[L], 0 where not sampled
    advantages: np.ndarray  # float32[L]
    loss_weights: np.ndarray  # float32[L]
    versions: np.ndarray  # int32[L], -1 where not sampled
    group_id: int = -1
    sample_id: int = -1
    ref_logprobs: np.ndarray | None = None  # float32[L]
    proximal_logprobs: np.ndarray | None = None  # float32[L]

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        for name, dtype in (
            ("token_ids", np.int32),
            ("loss_mask", np.bool_),
            ("round_ids", np.int16),
            ("sampler_logprobs", np.float32),
            ("advantages", np.float32),
            ("loss_weights", np.float32),
            ("versions", np.int32),
        ):
            _check_array("Sample", name, getattr(self, name), dtype, length)
        for name in ("ref_logprobs", "proximal_logprobs"):
            if getattr(self, name) is not None:
                _check_array("Sample", name, getattr(self, name), np.float32, length)
        if length and self.loss_mask[0]:
            raise ValueError("the first token has nothing before it and cannot be trained")
        outside = ~self.loss_mask
        for name in ("advantages", "loss_weights"):
            if getattr(self, name)[outside].any():
                raise ValueError(f"Sample.{name} must be 0 on tokens the policy did not sample")
