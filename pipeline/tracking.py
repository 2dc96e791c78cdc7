"""Where a run's metrics go: ``metrics.jsonl`` always, TensorBoard by default, W&B on request.

All trackers get the same names (pipeline/metrics.py). A tracker is opened once a run by
``open_trackers`` and closed by its ``with`` block, also when the run ends by an error.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from pipeline.atomic import needed, write_text
from pipeline.config import TrackerConfig
from pipeline.errors import UserError
from pipeline.step_record import MetricLog, StepRecord

__all__ = [
    "TensorBoardTracker",
    "Tracker",
    "Trackers",
    "WandbTracker",
    "check_trackers",
    "open_trackers",
]


class Tracker(Protocol):
    """A sink of step records."""

    def append(self, record: StepRecord) -> None:
        """Record one step."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class TensorBoardTracker:
    """Event files in a directory; ``tensorboard --logdir`` shows them. What earlier files have from
    ``first_step`` on is no longer shown."""

    def __init__(self, directory: Path, first_step: int = 1) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = first_step if first_step > 1 else None
        self._directory = directory
        self._writer = SummaryWriter(str(directory), purge_step=purged)

    def append(self, record: StepRecord) -> None:
        """One scalar a finite metric; flushed, so that a live TensorBoard follows. Raises
        GleanerError where they cannot be written."""
        with needed("what TensorBoard shows in", self._directory):
            for name, value in record.metrics.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, record.step)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        with suppress(OSError):  # what `append` could not write, and told
            self._writer.close()


class WandbTracker:
    """Weights & Biases. The key comes from the environment only, never from a config. The run's id
    is kept in ``run_dir``, so that a resumed run goes on there, too."""

    def __init__(self, *, project: str, run_dir: Path, config: Mapping[str, Any]) -> None:
        import wandb

        kept = run_dir / "wandb_run_id"
        if not kept.exists():
            write_text(kept, secrets.token_hex(8))
        self._run = wandb.init(
            project=project,
            dir=str(run_dir),
            name=run_dir.name,
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            config=dict(config),
        )

    def append(self, record: StepRecord) -> None:
        """One call a step, under the same names."""
        finite = {n: v for n, v in record.metrics.items() if math.isfinite(v)}
        self._run.log(finite, step=record.step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackers:
    """Several trackers as one; use it in a ``with`` block."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def append(self, record: StepRecord) -> None:
        """Give the record to every tracker."""
        for tracker in self._trackers:
            tracker.append(record)

    def close(self) -> None:
        """Close every tracker."""
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_trackers(config: TrackerConfig) -> None:
    """Raise UserError where W&B is asked for and cannot be had."""
    if not config.wandb:
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError(
            "tracker.wandb=true needs the package wandb, which is not installed: "
            "run `pip install wandb`, or leave tracker.wandb=false"
        ) from error
    if not _wandb_can_log_in(os.environ):
        raise UserError(
            "tracker.wandb=true finds no key: set the environment variable WANDB_API_KEY, "
            "or WANDB_MODE=offline to keep the run on this machine"
        )


def open_trackers(
    config: TrackerConfig,
    run_dir: Path,
    resolved_config: Mapping[str, Any] | None = None,
    *,
    first_step: int = 1,
) -> Trackers:
    """The trackers that ``config`` asks for, writing below ``run_dir``, from ``first_step`` on.

    ``resolved_config`` is shown by W&B beside the curves. Raises UserError where W&B is asked
    for and cannot be had; then nothing was written.
    """
    check_trackers(config)
    trackers: list[Tracker] = []
    if config.wandb:
        trackers.append(
            WandbTracker(
                project=config.wandb_project, run_dir=run_dir, config=resolved_config or {}
            )
        )
    trackers.append(MetricLog(run_dir / "metrics.jsonl"))
    if config.tensorboard:
        trackers.append(TensorBoardTracker(run_dir / "tensorboard", first_step))
    return Trackers(trackers)


def _wandb_can_log_in(environment: Mapping[str, str]) -> bool:
    """A key is there, or none is needed."""
    offline = environment.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")
    return offline or bool(environment.get("WANDB_API_KEY"))
