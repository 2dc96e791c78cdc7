"""``python -m pipeline export run_dir=DIR``: a checkpoint as a plain Hugging Face directory.

``export.checkpoint`` is ``last``, ``best`` (by the evaluations during training) or a step;
``export.output`` names the directory. The run may go on meanwhile, on other resources.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint import Checkpoint, CheckpointStore
from pipeline.config import GleanerConfig
from pipeline.errors import GleanerError, UserError
from pipeline.launch import open_learner
from pipeline.overrides import check_own_overrides
from pipeline.preflight import check_replay
from pipeline.progress import open_progress
from pipeline.resume import open_checkpoints
from pipeline.run_directory import read_config

__all__ = ["choose", "run"]

_OWN_KEYS = ("export", "run_dir", "tracker", "hydra")  # what overrides may name


def run(config: GleanerConfig) -> None:
    """Raises UserError where there is no such checkpoint, GleanerError where its weights are not
    those that it was made of."""
    check_own_overrides("export", _OWN_KEYS, "leave {override!r} out; run_dir names the run")
    run_dir = Path(config.run_dir)
    of_run = replace(read_config(run_dir), run_dir=str(run_dir))
    chosen = choose(open_checkpoints(of_run), config.export.checkpoint, run_dir)
    output = Path(config.export.output or run_dir / f"policy-{chosen.step:06d}")
    check_replay(of_run)
    with open_progress(config.tracker.progress) as progress:
        asyncio.run(_export(of_run, chosen, output))
        progress.line(f"policy of step {chosen.step}: {output}")


def choose(checkpoints: CheckpointStore, which: str, run_dir: Path) -> Checkpoint:
    """The checkpoint that ``which`` names: last, best, or a step. Raises UserError."""
    there = checkpoints.all()
    steps = ", ".join(str(c.step) for c in there) or "none"
    if which == "last":
        found = checkpoints.newest()
    elif which == "best":
        found = checkpoints.best()
    else:
        found = next((c for c in there if str(c.step) == which), None)
    if found is None:
        raise UserError(
            f"export.checkpoint={which}: the run in {run_dir} has no such checkpoint (steps there: "
            f"{steps}; best needs trainer.evaluate_every)"
        )
    return found


async def _export(config: GleanerConfig, checkpoint: Checkpoint, output: Path) -> None:
    async with open_learner(config) as learner:
        await learner.load_checkpoint(checkpoint.learner)
        digest = await learner.digest()
        if digest != checkpoint.digest:
            raise GleanerError(
                f"{checkpoint.directory} holds weights with digest {digest[:16]}, it was made of "
                f"{checkpoint.digest[:16]}: its files were changed"
            )
        await learner.export_policy(output)
