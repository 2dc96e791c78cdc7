"""A run that died, found again in its directory, and where it goes on.

    ledger      which groups were admitted, finished (whole), in training, trained
    journal     what the learner consumed, and which weights were published
    checkpoints the learner's state at some earlier step
    metrics     what was measured of every step

The weights go on from the version published last: checkpoint plus journal. Where these do not lead
there (no journal, a GPU, another machine) the run goes on from the checkpoint alone, and what was
trained since is rolled back: counted, and issued again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.atomic import needed, write_lines
from pipeline.checkpoint import DIRECTORY_NAME as CHECKPOINTS
from pipeline.checkpoint import CheckpointStore
from pipeline.config import GleanerConfig
from pipeline.curriculum import Curriculum
from pipeline.driver import Start
from pipeline.errors import UserError
from pipeline.journal import DIRECTORY_NAME as JOURNAL
from pipeline.journal import FileJournal, Journal, JournalView, NoJournal, read_journal
from pipeline.ledger import FILE_NAME as LEDGER
from pipeline.ledger import Ledger
from pipeline.ledger_view import GroupState, LedgerView, is_begun, read_ledger
from pipeline.pools import Learner
from pipeline.recovery import ReplayError, restore
from pipeline.run_directory import read_config
from pipeline.step_record import StepRecord, read_metrics
from pipeline.step_recorder import read_unrecorded

__all__ = [
    "Interrupted",
    "can_replay",
    "find_interrupted",
    "locked",
    "open_checkpoints",
    "open_journal",
]

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_LOCK = ".lock"

#: What may differ when a run goes on: it does not enter what is learned from what is journaled.
_FREE = (
    "run_dir",
    "resume",
    "cluster",
    "tracker",
    "report",
    "evaluate",
    "checkpoint",
    "supervisor",
    "compare",
    "rft",
    "replay",
    "export",
    "warmstart",
    "trainer.steps",
    "trainer.minutes",
    "trainer.evaluate_",
    "trainer.stall_s",
    "rollout.num_actors",
    "rollout.threads",
    "rollout.max_num_seqs",
    "rollout.kv_cache_gib",
    "rollout.spare_model",
    "rollout.gpu_memory_utilization",
    "retriever.num_actors",
    "retriever.threads",
    "retriever.batch_size",
    "retriever.max_batch_wait_ms",
    "retriever.max_waiting",
    "retriever.cache_size",
    "retriever.shards",
    "retriever.degraded",
    "judge",  # another judge is what one goes on with when one failed; groups keep their verdicts
    "audit",
    "label",
    "learner.max_restarts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """What the directory of a run holds."""

    run_dir: Path
    ledger: LedgerView
    journal: JournalView | None  # None where it cannot be replayed
    last_journaled: int  # version; 0 without a journal
    judge_changes: tuple[str, ...] = ()  # keys of the judge that are not what they were, in words

    @property
    def published(self) -> int:
        """The version of the weights that were published last."""
        return max(self.last_journaled, max(self.ledger.steps(), default=0))

    @property
    def is_done(self) -> bool:
        """Whether the run wrote its results."""
        return self.ledger.outcome == "ended" and (self.run_dir / "summary.json").exists()

    async def restore(
        self, learner: Learner, checkpoints: CheckpointStore, on_event: Callable[[str], None]
    ) -> int:
        """Bring a learner that holds the first policy to the last version that can be had."""
        try:
            version = await restore(
                learner,
                version=self.published,
                checkpoints=checkpoints,
                journal=self.journal,
                on_step=lambda step: on_event(f"step {step} computed again from the journal"),
            )
        except ReplayError as error:
            if checkpoints.newest(self.published) is None:
                raise
            logger.warning("%s", error)
            version = await restore(
                learner, version=self.published, checkpoints=checkpoints, journal=None
            )
            on_event(f"{error}; the run goes on from its checkpoint of step {version}")
        return version

    def open_ledger(self, config: GleanerConfig, version: int) -> Ledger:
        """The ledger, with the run at ``version``; later steps are forgotten everywhere."""
        if config.trainer.journal:  # first: from then on the ledger knows what to undo
            FileJournal(self.run_dir / JOURNAL, resumed=True).roll_back(version)
        ledger = Ledger(
            self.run_dir / LEDGER,
            groups_per_step=config.buffer.groups_per_step,
            max_staleness=config.buffer.max_staleness,
            resumed=True,
        )
        ledger.resume(version)
        open_checkpoints(config).discard_after(version)
        path = self.run_dir / METRICS
        with needed("the metrics", path):
            write_lines(path, (r.to_json() for r in self.records(version)))
        return ledger

    def records(self, version: int) -> list[StepRecord]:
        """The metrics of the steps up to ``version``."""
        path = self.run_dir / METRICS
        found = read_metrics(path) if path.exists() else []
        return [record for record in found if record.step <= version]

    def unrecorded(self, version: int) -> StepRecord | None:
        """What is known of the step of ``version`` where the run died before it was recorded."""
        found = read_unrecorded(self.run_dir)
        if found is None or found.step != version:
            return None
        return None if any(r.step == version for r in self.records(version)) else found

    def start(self, view: LedgerView, questions: Curriculum, version: int) -> Start:
        """Where the driver goes on, by the resumed ledger's ``view``; ``questions``, all from the
        first, are left at the next new one. Raises UserError where they are not those of the
        run."""
        asked = questions.resume(view.rows, str(self.run_dir))
        unrecorded = self.unrecorded(version)
        records = [*self.records(version), *([unrecorded] if unrecorded else [])]
        return Start(
            version=version,
            reissue={r.ticket: asked[r.ticket] for r in view.rows if r.state is GroupState.QUEUED},
            elapsed_s=records[-1].elapsed_s if records else 0.0,
        )


def find_interrupted(config: GleanerConfig) -> Interrupted | None:
    """The run in ``run_dir``, with ``resume=auto``; None where there is none, or none that had
    begun: what is left of that is removed.

    Raises UserError where that run's configuration is another one.
    """
    run_dir = Path(config.run_dir)
    if config.resume != "auto":
        return None
    open_checkpoints(config).sweep()  # first: one that filled the disk leaves no room to go on
    if not is_begun(run_dir / LEDGER):  # it is made last
        (run_dir / LEDGER).unlink(missing_ok=True)
        shutil.rmtree(run_dir / JOURNAL, ignore_errors=True)
        return None
    changes = _check_same(config, read_config(run_dir))
    journal = read_journal(run_dir / JOURNAL) if config.trainer.journal else None
    return Interrupted(
        run_dir=run_dir,
        ledger=read_ledger(run_dir / LEDGER),
        journal=journal if can_replay(config) else None,
        last_journaled=journal.last_step if journal else 0,
        judge_changes=changes,
    )


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """This process alone works in ``run_dir``. Raises UserError where another one does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / _LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"another process works in {run_dir} ({file.read().strip() or 'it just began'}): "
                "wait for it, stop it, or choose another run_dir"
            ) from None
        with suppress(OSError):  # the disk is full: only others would want to read this
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def can_replay(config: GleanerConfig) -> bool:
    """Whether the learner's weights can be computed again to the last bit."""
    return config.trainer.journal and config.learner.num_gpus == 0


def open_checkpoints(config: GleanerConfig) -> CheckpointStore:
    """Those of the run in ``run_dir``."""
    return CheckpointStore(Path(config.run_dir) / CHECKPOINTS, config.checkpoint)


def open_journal(config: GleanerConfig, start_digest: str, *, resumed: bool) -> Journal:
    """The journal of the run in ``run_dir``, which began with weights of ``start_digest``."""
    if not config.trainer.journal:
        return NoJournal()
    journal = FileJournal(Path(config.run_dir) / JOURNAL, resumed=resumed)
    if not resumed:
        journal.published(0, start_digest)
    return journal


def _check_same(config: GleanerConfig, of_run: GleanerConfig) -> tuple[str, ...]:
    """Raise UserError for a key that may not differ. Returns what differs of the judge, which may,
    but which nobody should change without knowing it."""
    now, then = (dict(_flat(_plain(c))) for c in (config, of_run))
    free = _FREE if config.learner.schedule == "constant" else tuple(set(_FREE) - {"trainer.steps"})
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) == then.get(key) or key.startswith(free) or key.endswith("timeout_s"):
            continue
        raise UserError(
            f"{key} is {now.get(key)} now and was {then.get(key)} in the run that is to go on in "
            f"{config.run_dir}: leave it as it was, or choose another run_dir"
        )
    return tuple(
        f"{key} was {then.get(key)} and is {now.get(key)}"
        for key in sorted(now.keys() | then.keys())
        if key.startswith("judge.") and now.get(key) != then.get(key)
    )


def _plain(config: GleanerConfig) -> Any:
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
