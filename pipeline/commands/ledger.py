"""``python -m pipeline ledger run_dir=DIR``: where every group of a run is, and does it add up?

Works on a run that goes on, has ended, failed or was killed. Exit code 1 where the counts do not
add up, or journal or metrics say otherwise.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import GleanerConfig
from pipeline.errors import GleanerError
from pipeline.ledger import FILE_NAME
from pipeline.ledger_check import problems_of
from pipeline.ledger_view import GroupState, LedgerView, read_ledger

__all__ = ["describe", "run"]

_REASONS = 5  # most frequent ones that are printed


def run(config: GleanerConfig) -> None:
    """Print and check. Raises UserError without a ledger, GleanerError for a wrong one."""
    run_dir = Path(config.run_dir)
    view = read_ledger(run_dir / FILE_NAME)
    print("\n".join(describe(view)))
    if problems := problems_of(view, run_dir):
        raise GleanerError("the ledger does not add up: " + "; ".join(problems))
    print("everything adds up")


def describe(view: LedgerView) -> Iterator[str]:
    """The account in words, line by line."""
    counts = view.counts()
    in_flight = sum(number for state, number in counts.items() if state.in_flight)
    ends = [f"{number} {state}" for state, number in counts.items() if not state.in_flight]
    how = view.outcome or "goes on, or was killed"
    yield f"the run {how}; {len(view.rows)} groups = {' + '.join(ends)} + {in_flight} in flight"
    if in_flight:
        yield "in flight: " + ", ".join(f"{n} {s}" for s, n in counts.items() if s.in_flight and n)
    if steps := view.steps():
        staleness = [k - 1 - row.admission_version for k, rows in steps.items() for row in rows]
        yield (
            f"train steps 1 to {max(steps)}, {view.groups_per_step} groups each; staleness of a "
            f"group: mean {statistics.mean(staleness):.2f}, largest {max(staleness)} (bound "
            f"{view.max_staleness})"
        )
    trained = [row for row in view.rows if row.state is GroupState.TRAINED]
    if waits := [r.ended_at - r.buffered_at for r in trained if r.ended_at and r.buffered_at]:
        yield (
            f"from the buffer to the published weights: median {statistics.median(waits):.1f} s, "
            f"longest {max(waits):.1f} s"
        )
    if view.resumes:
        again = sum(row.issues > 1 for row in view.rows)
        yield (
            f"issued again after a death of the run: {again} groups; rolled back: "
            f"{sum(row.rolled_back > 0 for row in view.rows)}"
        )
    reasons = Counter(row.reason for row in view.rows if row.state is GroupState.FAILED)
    for reason, number in reasons.most_common(_REASONS):
        yield f"failed, {number} times: {reason}"
