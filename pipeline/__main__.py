"""``python -m pipeline [command] key=value ...``: commands by name, everything else by Hydra.

``-m`` (Hydra's multi-run) sweeps: ``python -m pipeline -m algorithm=grpo,cw_grpo``. A training run
that is no sweep has a supervisor (``pipeline.supervisor``) and is its child.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import GleanerError, InfrastructureError, StoppedError, UserError
from pipeline.supervisor import (
    INFRASTRUCTURE_EXIT,
    STOPPED_EXIT,
    UNFORESEEN_EXIT,
    die_with_parent,
    is_supervised,
    supervise,
)

COMMANDS = {
    "train": "train a policy, evaluate it before and after, write the report (default)",
    "evaluate": "evaluate policy=DIR on questions=FILE[,FILE...] (or a split of the task)",
    "prepare": "make the task's files and the index, and check them with the oracle",
    "warmstart": "make the small default policy from scratch",
    "rft": "the baseline without RL: rejection-sampling fine-tuning at equal tokens",
    "compare": "arms over seeds: compare=credit (judge, staleness, rounds, group_size)",
    "ledger": "where every group of a run is, and whether the counts add up: run_dir=DIR",
    "replay": "a run's weights again from its journal, digest for digest: run_dir=DIR to_step=K",
    "export": "a checkpoint as a Hugging Face directory: run_dir=DIR export.checkpoint=best",
    "traces": "labelled traces of a policy, for audits: evaluate.split=test evaluate.samples=2",
    "label": "labels by people: traces=FILE label.export=FILE.html, then label.import_from=FILE",
    "audit": "a judge against labels: judge=... traces=FILE, or questions=HOTPOT.json",
    "attack": "can the judge be talked into anything: judge=... traces=FILE",
    "train_judge": "make the small judge from scratch",
    "signals": "the evidence judge's u x v table of a policy",
}
USAGE = "usage: python -m pipeline [command] [key=value ...]\n\ncommands:\n" + "\n".join(
    f"  {name:<11} {what}" for name, what in COMMANDS.items()
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for a user's error, 75 for a pool that was lost,
    70 for an error that nobody foresaw, 1 for any other, 130 stopped."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(USAGE + "\n\nKeys: docs/configuration.md, or --cfg job to print them all.")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    if is_supervised():
        die_with_parent()
    try:
        command, arguments = _split_command(arguments)
        return _run_with_hydra(command, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except GleanerError as error:
        print(f"error: {error}", file=sys.stderr)
        return _exit_code(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _split_command(arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments or "=" in arguments[0] or arguments[0].startswith(("-", "+", "~")):
        return "train", arguments
    if arguments[0] not in COMMANDS:
        raise UserError(f"unknown command {arguments[0]!r}; use one of {', '.join(COMMANDS)}")
    return arguments[0], arguments[1:]


def _run_with_hydra(command: str, arguments: list[str]) -> int:
    import hydra

    from pipeline.overrides import CONF_DIR, compose_config, expand_shorthand

    arguments = expand_shorthand(arguments, command)
    overrides = [a for a in arguments if not a.startswith("-")]
    if len(overrides) == len(arguments):  # no Hydra flags: a plain run, checked first
        from pipeline.config_checks import to_config

        config = to_config(compose_config(overrides))
        if command == "train" and config.supervisor.max_restarts and not is_supervised():
            restarts = config.supervisor.max_restarts
            return supervise([command, *arguments], Path(config.run_dir), restarts)
    else:
        from pipeline.config import register_schema

        register_schema()

    def task(composed: Any) -> None:
        _run(command, composed)

    sys.argv = ["python -m pipeline", *arguments]
    hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(task)()
    return 0


def _run(command: str, composed: Any) -> None:
    from hydra.core.hydra_config import HydraConfig

    from pipeline.config_checks import to_config
    from pipeline.packaged_policy import packaged_policy

    run_dir = Path(HydraConfig.get().runtime.output_dir).resolve()
    is_fresh = not any(run_dir.iterdir())
    composed.run_dir = str(run_dir)
    try:
        config = to_config(composed)
        models = Path("data/policies")
        config.policy.path = packaged_policy(config.policy.path, models)
        config.judge.model = packaged_policy(config.judge.model, models, key="judge.model")
        importlib.import_module(f"pipeline.commands.{command}").run(config)
    except GleanerError as error:  # Hydra would print a stack trace
        print(f"error: {error}", file=sys.stderr)
        if is_fresh and isinstance(error, UserError) and command != "rft":
            _remove_unused(run_dir)
        sys.exit(_exit_code(error))
    except Exception:
        logging.getLogger(__name__).exception("an error that nobody foresaw")
        traceback.print_exc()
        sys.exit(UNFORESEEN_EXIT)
    finally:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # left empty by a command that writes nothing there


def _exit_code(error: GleanerError) -> int:
    if isinstance(error, StoppedError) and is_supervised():
        return STOPPED_EXIT
    if isinstance(error, UserError):
        return 2
    return INFRASTRUCTURE_EXIT if isinstance(error, InfrastructureError) else 1


def _remove_unused(run_dir: Path) -> None:
    """Nothing half-written stays of a run that a user's error ended before it began. One that had
    begun can go on, with the groups that it has."""
    from pipeline.ledger import FILE_NAME

    if not (run_dir / FILE_NAME).exists():
        shutil.rmtree(run_dir, ignore_errors=True)


def _interrupt(signum: int, frame: Any) -> None:
    """SIGTERM does what Ctrl-C does at this moment: an event loop ends its task in order."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


if __name__ == "__main__":
    sys.exit(main())
