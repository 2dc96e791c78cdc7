"""Checkpoints of the learner: whole or absent, the last few and the best are kept.

    checkpoints/000010/checkpoint.json    step, digest of the weights, score of an evaluation
    checkpoints/000010/learner/           DeepSpeed's state, written by the learner's ranks

Where the groups are, which are finished and what they hold is in the ledger, what the learner
consumed since is in the journal: neither has to wait for a checkpoint. DeepSpeed's files are
pickles: load those of runs that you trust only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic import sync_directory, write_json
from pipeline.config import CheckpointConfig
from pipeline.errors import ActorLostError, InfrastructureError, LateError
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
        self._warned: set[str] = set()
        self.failures = 0  # checkpoints that could not be written

    def is_due(self, step: int) -> bool:
        """Whether ``step`` is one to write one after."""
        return bool(self._config.every) and step % self._config.every == 0

    def is_best(self, score: float) -> bool:
        """Whether one with that score is to be kept: it is better than all that are there."""
        best = self.best()
        return self._config.keep_best and (best is None or best.score is None or score > best.score)

    async def save(self, learner: Learner, step: int, score: float | None = None) -> bool:
        """Write one, then remove those that need not be kept. Where it cannot be written (the disk
        is full) nothing of it stays, the run goes on, and False is returned.

        Raises ActorLostError or LateError where the learner died over it.
        """
        final = self._directory / f"{step:06d}"
        partial = final.with_name(f".{final.name}.partial")
        self.sweep()
        try:
            (partial / "learner").mkdir(parents=True)
            await learner.save_checkpoint(partial / "learner")
            fail_as_full_disk("checkpoint")
            digest = await learner.digest()
            about = {"format": _FORMAT, "step": step, "digest": digest, "score": score}
            write_json(partial / _ABOUT, about)
            _remove(final)
            partial.rename(final)
            sync_directory(self._directory)
        except (ActorLostError, LateError):
            self.sweep()
            raise
        except (InfrastructureError, OSError) as error:
            self.sweep()
            self.failures += 1
            logger.warning("no checkpoint of step %d could be written: %s", step, error)
            return False
        await asyncio.to_thread(self._prune)
        return True

    def all(self) -> list[Checkpoint]:
        """Those on disk, by step. One that cannot be read is passed over, with a warning."""
        found = [c for c in self._found() if isinstance(c, Checkpoint)]
        return sorted(found, key=lambda c: c.step)

    def damaged(self) -> list[str]:
        """What is wrong with those that cannot be read."""
        return [c for c in self._found() if isinstance(c, str)]

    def _found(self) -> list[Checkpoint | str]:
        paths = sorted(self._directory.glob("[0-9]*"))
        found = [_read(path) for path in paths if (path / _ABOUT).exists()]
        for problem in found:
            if isinstance(problem, str) and problem not in self._warned:
                self._warned.add(problem)
                logger.warning("%s", problem)
        return found

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
                _remove(checkpoint.directory)

    def sweep(self) -> None:
        """Remove what a death left half-written or half-removed."""
        for path in self._directory.glob(".[0-9]*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        found = self.all()
        kept = {c.step for c in found[-self._config.keep_last :]}
        best = _best(found)
        if best is not None and self._config.keep_best:
            kept.add(best.step)
        for checkpoint in found:
            if checkpoint.step not in kept:
                _remove(checkpoint.directory)


def _remove(directory: Path) -> None:
    """It is gone at once, by name; then its files are."""
    if directory.exists():
        doomed = directory.with_name(f".{directory.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _best(found: Sequence[Checkpoint]) -> Checkpoint | None:
    scored = [c for c in found if c.score is not None]
    return max(scored, key=lambda c: (c.score, c.step), default=None)


def _read(directory: Path) -> Checkpoint | str:
    """The checkpoint, or why it cannot be read."""
    path = directory / _ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            return f"{path} has format {about['format']}, this version reads {_FORMAT}"
        return Checkpoint(
            step=int(about["step"]),
            digest=str(about["digest"]),
            score=None if about["score"] is None else float(about["score"]),
            directory=directory,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} is damaged ({error!r})"
