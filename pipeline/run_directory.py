"""What every run leaves in its directory besides results: config, versions, log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline.atomic import write_text
from pipeline.config import GleanerConfig
from pipeline.config_checks import to_config
from pipeline.errors import UserError
from pipeline.journal import DIRECTORY_NAME as JOURNAL
from pipeline.ledger import FILE_NAME as LEDGER
from pipeline.ledger_view import check_unused
from pipeline.progress import not_progress
from pipeline.summary import machine, package_versions

__all__ = ["check_no_run", "config_yaml", "open_run_directory", "read_config"]


def open_run_directory(config: GleanerConfig, *, resumed: bool = False) -> Path:
    """Make ``run_dir`` with ``config.yaml``, ``versions.json`` and the log ``run.log``.

    The log takes everything at INFO; the console only warnings. Raises UserError for the directory
    of a training run, unless it is ``resumed``: its configuration must stay (`check_no_run`).
    """
    run_dir = Path(config.run_dir)
    if not resumed:
        check_no_run(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "config.yaml", config_yaml(config))
    versions = {"packages": package_versions(), "machine": machine()}
    write_text(run_dir / "versions.json", json.dumps(versions, indent=2) + "\n")
    _open_log(run_dir / "run.log")
    return run_dir


def check_no_run(run_dir: Path) -> None:
    """Raises UserError where ``run_dir`` holds a training run already."""
    for name in (LEDGER, JOURNAL):
        check_unused(run_dir / name)


def config_yaml(config: GleanerConfig) -> str:
    """The resolved configuration as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def read_config(run_dir: Path) -> GleanerConfig:
    """The configuration that the run in ``run_dir`` had. Raises UserError where it has none, or one
    that this version does not understand."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing: is {run_dir} the directory of a run?")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(GleanerConfig), OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be used by this version: {message}") from None
    assert isinstance(merged, DictConfig)  # the schema is one
    return to_config(merged)


def _open_log(path: Path) -> None:
    root = logging.getLogger()
    for handler in root.handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(not_progress)
    root.setLevel(logging.INFO)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for old in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(to_file)
