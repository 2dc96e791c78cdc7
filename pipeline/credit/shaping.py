"""Reward shaping inside the algorithm: it never makes a wrong answer correct.

Source of the length term: DAPO (Yu et al., arXiv 2503.14476), soft overlong punishment.
"""

from __future__ import annotations

__all__ = ["overlong_penalty"]


def overlong_penalty(num_policy_tokens: int, *, limit: int, margin: int) -> float:
    """0 up to ``limit - margin`` tokens, then falling in a line to -1 at ``limit`` and beyond.

    ``limit`` 0 turns it off. Tokens are those the policy sampled, over all rounds.

    >>> [overlong_penalty(n, limit=100, margin=20) for n in (80, 90, 100, 130)]
    [0.0, -0.5, -1.0, -1.0]
    """
    if limit <= 0:
        return 0.0
    over = num_policy_tokens - (limit - margin)
    if over <= 0:
        return 0.0
    return -min(over / margin, 1.0) if margin else -1.0
