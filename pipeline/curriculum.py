"""Which question is asked next: the next of the stream, or the next that still teaches something.

A question whose last ``skip_after`` groups were filtered (all samples solved it, or none did) is
passed over until ``skip_for`` more groups were admitted; then it is asked again, for the policy has
changed. All that is known of a question is in the ledger, so a resumed run chooses by it, too.

    skip_after=2, skip_for=100: q7 is filtered as group 40 and as group 90
    when its turn comes again, as that of group 150, the question after it is asked in its place
    from group 190 on it has its turn again
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.config import CurriculumConfig
from pipeline.errors import UserError
from pipeline.ledger_view import GroupState, LedgerRow
from pipeline.types import Question

__all__ = ["Curriculum"]


@dataclass(slots=True)
class _Past:
    """What a question did so far."""

    last_ticket: int
    filtered_in_a_row: int = 0


class Curriculum:
    """Chooses from ``questions``, an endless stream that repeats ``num_questions`` of them."""

    def __init__(
        self, questions: Iterable[Question], num_questions: int, config: CurriculumConfig
    ) -> None:
        self.skipped = 0  # questions passed over; whoever counts them may reset it
        self._stream, self._num_questions, self._config = iter(questions), num_questions, config
        self._put_back: deque[Question] = deque()  # they come before the stream goes on
        self._past: dict[str, _Past] = {}  # by question id; empty where nothing is skipped

    def next(self, ticket: int) -> Question:
        """The question of the group that is admitted as ``ticket``. Where all of them should rest,
        one is asked all the same."""
        resting: list[Question] = []
        for _ in range(self._num_questions):
            question = self._upcoming()
            if not self._rests(question, ticket):
                self.skipped += len(resting)
                return question
            resting.append(question)
        first, *others = resting
        self._put_back.extendleft(reversed(others))
        return first

    def _upcoming(self) -> Question:
        return self._put_back.popleft() if self._put_back else next(self._stream)

    def ended(self, ticket: int, question: Question, *, filtered: bool) -> None:
        """The group ``ticket`` of ``question`` was played to its end, and filtered or not."""
        self._ended(ticket, question.id, filtered=filtered)

    def resume(self, rows: Sequence[LedgerRow], run_dir: str) -> list[Question]:
        """Go on after the groups of an earlier life; returns their questions, by ticket.

        Raises UserError where the stream is not the one that these groups were asked from.
        """
        asked = [self._find(row, run_dir) for row in rows]
        for row in rows:
            if row.state not in (GroupState.QUEUED, GroupState.FAILED):
                filtered = row.state is GroupState.FILTERED
                self._ended(row.ticket, row.question_id, filtered=filtered)
        return asked

    def _find(self, row: LedgerRow, run_dir: str) -> Question:
        """What was passed over before it is passed over again."""
        furthest = self._num_questions if self._config.skip_after else 0
        first = question = self._upcoming()
        for _ in range(furthest):
            if question.id == row.question_id:
                break
            question = self._upcoming()
        if question.id != row.question_id:
            raise UserError(
                f"group {row.ticket} of the run in {run_dir} was of question "
                f"{row.question_id!r}, now {first.id!r} has its place: the training "
                "questions are not those that the run began with"
            )
        return question

    def _ended(self, ticket: int, question_id: str, *, filtered: bool) -> None:
        if not self._config.skip_after:
            return
        past = self._past.setdefault(question_id, _Past(ticket))
        past.last_ticket = max(ticket, past.last_ticket)
        past.filtered_in_a_row = past.filtered_in_a_row + 1 if filtered else 0

    def _rests(self, question: Question, ticket: int) -> bool:
        past = self._past.get(question.id)
        return (
            past is not None
            and past.filtered_in_a_row >= self._config.skip_after
            and ticket - past.last_ticket <= self._config.skip_for
        )
