"""Checkpoints of the learner: whole or absent, the last few and the best are kept.

    checkpoints/000010/checkpoint.json    step, digest of the weights, score of an evaluation
    checkpoints/000010/learner/           DeepSpeed's state, written by the learner's ranks

Where the groups are, which are finished and what they hold is in the ledger, what the learner
consumed since is in the journal: neither has to wait for a checkpoint. DeepSpeed's files are
pickles: load those of runs that you trust only.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic import sync_directory, write_json
from pipeline.config import CheckpointConfig
from pipeline.errors import InfrastructureError, UserError
from pipeline.failpoints import fail_as_full_disk
from pipeline.pools import Learner

__all__ = ["DIRECTORY_NAME", "Checkpoint", "CheckpointStore"]

logger = logging.getLogger(__name__)

DIRECTORY_NAME = "checkpoints"
_ABOUT = "checkpoint.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One on disk. ``score``: exact match of an evaluation after its step, if there was one."""

    step: int
    digest: str
    score: float | None
    directory: Path

    @property
    def learner(self) -> Path:
        """What the learner wrote."""
        return self.directory / "learner"


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        self._directory, self._config = directory, config
        self.failures = 0  # checkpoints that could not be written

    def is_due(self, step: int, score: float | None) -> bool:
        """Whether one should be written after ``step``: at its turn, or the best so far."""
        every = self._config.every
        if every and step % every == 0:
            return True
        best = self.best()
        return (
            self._config.keep_best
            and score is not None
            and (best is None or best.score is None or score > best.score)
        )

    async def save(
        self, learner: Learner, step: int, digest: str, score: float | None = None
    ) -> Checkpoint | None:
        """Write one, then remove those that need not be kept. Where it cannot be written (the disk
        is full) nothing of it stays, the run goes on, and None is returned."""
        final = self._directory / f"{step:06d}"
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            (partial / "learner").mkdir(parents=True)
            await learner.save_checkpoint(partial / "learner")
            fail_as_full_disk("checkpoint")
            about = {"format": _FORMAT, "step": step, "digest": digest, "score": score}
            write_json(partial / _ABOUT, about)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync_directory(self._directory)
        except (InfrastructureError, OSError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            self.failures += 1
            logger.warning("no checkpoint of step %d could be written: %s", step, error)
            return None
        self._prune()
        return _read(final)

    def all(self) -> list[Checkpoint]:
        """Those on disk, by step. Raises UserError for one that is damaged."""
        found = self._directory.glob("[0-9]*")
        return sorted((_read(path) for path in found), key=lambda c: c.step)

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """The last one, of those up to step ``at_most``."""
        fit = [c for c in self.all() if at_most is None or c.step <= at_most]
        return fit[-1] if fit else None

    def best(self) -> Checkpoint | None:
        """That with the best score; None where no scored one is there."""
        return _best(self.all())

    def discard_after(self, step: int) -> None:
        """Remove those of later steps: the run was rolled back to ``step``."""
        for checkpoint in self.all():
            if checkpoint.step > step:
                shutil.rmtree(checkpoint.directory)

    def _prune(self) -> None:
        found = self.all()
        kept = {c.step for c in found[-self._config.keep_last :]}
        best = _best(found)
        if best is not None and self._config.keep_best:
            kept.add(best.step)
        for checkpoint in found:
            if checkpoint.step not in kept:
                shutil.rmtree(checkpoint.directory, ignore_errors=True)


def _best(found: Sequence[Checkpoint]) -> Checkpoint | None:
    scored = [c for c in found if c.score is not None]
    return max(scored, key=lambda c: (c.score, c.step), default=None)


def _read(directory: Path) -> Checkpoint:
    path = directory / _ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise UserError(f"{path} has format {about['format']}, this version reads {_FORMAT}")
        return Checkpoint(
            step=int(about["step"]),
            digest=str(about["digest"]),
            score=None if about["score"] is None else float(about["score"]),
            directory=directory,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint {path} is damaged ({error!r}): remove it") from None
