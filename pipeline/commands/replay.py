"""``python -m pipeline replay run_dir=DIR to_step=K``: a run's weights again, by its learner alone.

Feeds the journal of a run to a fresh learner with the run's own configuration and compares the
digest of the weights after every train step with what was published. On CPUs of the same machine,
with the same code, libraries, number of ranks and threads, they are equal to the last bit: a
debugger for training that needs no engine, no retriever and no judge. On a GPU PyTorch's sums are
not reproducible and the transports digest other types: such runs are refused.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from pipeline.config import GleanerConfig
from pipeline.errors import GleanerError, UserError
from pipeline.journal import DIRECTORY_NAME, JournalView, read_journal
from pipeline.launch import open_learner
from pipeline.overrides import check_own_overrides
from pipeline.preflight import check_replay
from pipeline.progress import Progress, open_progress
from pipeline.recovery import replay
from pipeline.run_directory import read_config

__all__ = ["run"]

_OWN_KEYS = ("replay", "run_dir", "tracker", "hydra")  # what overrides may name


def run(config: GleanerConfig) -> None:
    """Raises UserError for what cannot be replayed, GleanerError where a digest differs."""
    check_own_overrides(
        "replay", _OWN_KEYS, "leave {override!r} out; run_dir names the run, to_step the last step"
    )
    run_dir = Path(config.run_dir)
    journal = read_journal(run_dir / DIRECTORY_NAME)
    last = config.replay.to_step or journal.last_step
    if last > journal.last_step:
        raise UserError(f"to_step={last}: the run in {run_dir} published {journal.last_step} steps")
    of_run = read_config(run_dir)
    if of_run.learner.num_gpus > 0:
        raise UserError(
            f"the run in {run_dir} trained on a GPU, where the weights cannot be computed again to "
            "the last bit: replay is for learners on CPUs"
        )
    check_replay(of_run)
    with open_progress(config.tracker.progress) as progress:
        asyncio.run(_replay(of_run, journal, last, config.replay.output, progress))


async def _replay(
    config: GleanerConfig, journal: JournalView, last: int, output: str, progress: Progress
) -> None:
    async with open_learner(config) as learner:
        with progress.phase("replay", total=last) as phase:
            for step in range(last + 1):
                if step:
                    await replay(learner, journal, step)
                _compare(step, await learner.digest(), journal)
                phase.reach(step)
        progress.line(f"the weights of all versions up to {last} are those that were published")
        if output:
            await learner.export_policy(Path(output))
            progress.line(f"policy of version {last}: {output}")


def _compare(step: int, digest: str, journal: JournalView) -> None:
    published = journal.digests[step]
    if digest == published:
        return
    if step == 0:
        raise GleanerError(
            f"the policy to start from has digest {digest[:16]}, the run began with "
            f"{published[:16]}: policy.path holds other weights now"
        )
    raise GleanerError(
        f"after step {step} the weights have digest {digest[:16]}, the run published "
        f"{published[:16]}; up to step {step - 1} they are equal. They must be, on the same "
        "machine with the same code, libraries, ranks and threads"
    )
