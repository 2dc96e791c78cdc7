"""What the chaos test does to a run: kills, frozen processes, errors, a full disk, a lost node."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.watched_run import WatchedRun
from pipeline.checkpoint import DIRECTORY_NAME as CHECKPOINTS
from pipeline.ledger import FILE_NAME as LEDGER
from pipeline.ledger_view import GroupState, read_ledger

__all__ = ["FAULTS", "Fault", "Struck"]

DRIVER, ROLLING_LIMIT_S = "the driver", 60.0


@dataclass(frozen=True)
class Struck:
    """The actor, or the driver, that a fault took from the run. ``is_back`` says whether another
    process has taken its place."""

    name: str
    is_back: Callable[[], bool]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and how soon the run must make its next step after it, and have
    back what was struck. ``process`` names whose is struck by ``signal``; ``place`` fails by
    ``words`` for a while; with ``node`` the second node is lost, and another takes its place when
    the run has made its step without. With ``disk`` that of the run is full, where it has a small
    one of its own; else ``place`` says that it is."""

    name: str
    limit_s: float
    process: str = ""
    signal: signal.Signals = signal.SIGKILL
    place: str = ""
    words: str = ""
    node: bool = False
    disk: bool = False

    @contextmanager
    def injected(self, run: WatchedRun) -> Iterator[Struck | None]:
        """Strike; what fails for a while works again afterwards."""
        if self.process:
            if self.process == DRIVER:  # so that there is something to issue again
                run.wait(lambda: _plays(run), ROLLING_LIMIT_S)
            name, pid = run.processes(self.process)[-1]
            place = re.escape(name.partition(".")[0])  # those after the first have a number behind
            seen = len(run.processes(rf"{place}(?:\.\d+)?"))
            os.kill(pid, self.signal)
            yield Struck(name, lambda: len(run.processes(rf"{place}(?:\.\d+)?")) > seen)
            return
        if self.node:
            assert run.nodes is not None
            run.nodes.lose_second()
            yield None
            run.nodes.add_second()
            return
        if self.disk and run.disk is not None:
            with run.disk.full(room=_checkpoint_bytes(run) // 2):
                yield None
            return
        file = run.faults / self.place
        file.write_text(self.words)
        yield None
        file.unlink()


ACTOR_S, DRIVER_S = 60.0, 120.0
FAULTS = (
    Fault("kill-rollout", ACTOR_S, process=r"rollout-[\d.]+"),
    Fault("kill-retriever", ACTOR_S, process=r"retriever-\d+"),
    Fault("kill-judge", ACTOR_S, process=r"judge-\d+"),
    Fault("kill-learner", DRIVER_S, process=r"learner-\d+"),
    Fault("freeze-rollout", ACTOR_S, process=r"rollout-[\d.]+", signal=signal.SIGSTOP),
    Fault("freeze-learner", DRIVER_S, process=r"learner-\d+", signal=signal.SIGSTOP),
    Fault("judge-errors", ACTOR_S, place="judge", words="error"),
    Fault("judge-slow", ACTOR_S, place="judge", words="slow 20"),
    Fault("judge-garbage", ACTOR_S, place="judge", words="garbage"),
    Fault("full-disk-at-checkpoint", ACTOR_S, place="checkpoint", words="full", disk=True),
    Fault("lose-node", DRIVER_S, node=True),
    Fault("kill-driver", DRIVER_S, process=DRIVER),
)


def _plays(run: WatchedRun) -> bool:
    """Whether a group is with the engines or the judge."""
    return read_ledger(run.run_dir / LEDGER).counts()[GroupState.ROLLING] > 0


def _checkpoint_bytes(run: WatchedRun) -> int:
    """Size of the newest checkpoint."""
    newest = max((run.run_dir / CHECKPOINTS).glob("[0-9]*"))
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
