"""From the command line to a composed configuration, with messages a person can act on.

``python -m pipeline [command] key=value ...``: everything goes through Hydra; some
spellings are shorthand for the commands' own words (``policy=DIR``, ``questions=FILE``,
``traces=FILE``, ``to_step=K``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import register_schema
from pipeline.errors import UserError

__all__ = ["CONF_DIR", "check_own_overrides", "compose_config", "expand_shorthand"]

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"


# Files that commands name by one word: the key that it stands for.
_FILES: Mapping[str, Mapping[str, str]] = {
    "audit": {"questions": "audit.questions", "traces": "audit.traces"},
    "attack": {"traces": "audit.traces"},
    "label": {"traces": "label.traces"},
}
_FILES_ELSEWHERE = {"questions": "evaluate.questions"}


def expand_shorthand(overrides: Sequence[str], command: str = "train") -> list[str]:
    """``policy=DIR`` becomes ``policy.path=DIR``, ``to_step=K`` ``replay.to_step=K``,
    ``questions=FILE`` ``evaluate.questions=FILE``; ``questions`` and ``traces`` of the commands
    about judges are keys of theirs.

    >>> expand_shorthand(["policy=outputs/run/policy", "questions=nq.jsonl", "policy=small"])
    ['policy.path="outputs/run/policy"', 'evaluate.questions="nq.jsonl"', 'policy=small']
    >>> expand_shorthand(["traces=a.jsonl"], "audit")
    ['audit.traces="a.jsonl"']
    """
    files = _FILES.get(command, _FILES_ELSEWHERE)
    return [_expand(override, files) for override in overrides]


def _expand(override: str, files: Mapping[str, str]) -> str:
    key, separator, value = override.partition("=")
    if not separator:
        return override
    if key in files:
        return f"{files[key]}={_quoted(value)}"
    if key == "to_step":
        return f"replay.to_step={value}"
    if key == "policy" and not (CONF_DIR / "policy" / f"{value}.yaml").exists():
        return f"policy.path={_quoted(value)}"
    return override


def _quoted(value: str) -> str:
    if value[:1] in "\"'":
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def check_own_overrides(
    command: str,
    own_keys: Sequence[str],
    remedy: str,
    overrides: Sequence[str] | None = None,
) -> None:
    """For a command whose runs have a configuration of their own: only its own sections may be
    overridden. ``overrides`` are those of this command line. Raises UserError for another one,
    which would silently do nothing; ``{override}`` in ``remedy`` is replaced."""
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in own_keys:
            raise UserError(
                f"{command}: {override!r} would not reach the run, which has a configuration of "
                f"its own: {remedy.format(override=override)}"
            )


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose ``conf/`` with ``overrides``. Raises UserError naming the key and the remedy."""
    register_schema()
    try:
        with _another_hydra(), initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides)) from None


@contextmanager
def _another_hydra() -> Iterator[None]:
    """Composing is possible inside a command too, which Hydra is running."""
    whole = GlobalHydra.instance()
    running = whole.hydra
    whole.clear()
    try:
        yield
    finally:
        whole.hydra = running


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    text = " ".join(str(part) for part in (error, error.__cause__ or ""))
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException:
            return (
                f"cannot read the override {override!r}; write key=value, and put quotes "
                "around a value with spaces, commas, braces or equals signs: 'key=\"value\"'"
            )
        key = parsed.key_or_group
        if f"'{key}/" in text:
            return _explain_option(key, override)
        if _is_named(key, text):
            return _explain_key(key, override, text)
    return text.splitlines()[0]


def _is_named(key: str, text: str) -> bool:
    """Whether the error is about ``key``: OmegaConf says ``full_key``, Hydra quotes the last part
    or repeats the override."""
    last = key.rpartition(".")[2]
    names = (f"full_key: {key}\n", f"Key '{last}'", f"override '{key}'", f"override {key}=")
    return any(name in text + "\n" for name in names)


def _explain_option(group: str, override: str) -> str:
    options = sorted(p.stem for p in (CONF_DIR / group).glob("*.yaml"))
    if not options:
        return f"unknown group {group!r} (conf/ has the groups)"
    return f"{override!r}: there is no such option; {group} is one of {', '.join(options)}"


# Sections that only one command reads, with a schema of their own.
_OWN_SCHEMA = {
    "warmstart": "pipeline/warmstart/config.py",
    "judge_training": "pipeline/judging/training_config.py",
}


def _explain_key(key: str, override: str, text: str) -> str:
    section = key.partition(".")[0]
    if section in _OWN_SCHEMA:
        return (
            f"unknown key {key!r}; keys of {_OWN_SCHEMA[section]} that are not in "
            f"conf/{section}/default.yaml are written +{key}=..."
        )
    known = list(_known_keys())
    if key in known:
        return f"{override!r}: {text.splitlines()[0].strip()}"
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"unknown key {key!r}{hint} (docs/configuration.md lists all keys)"


def _known_keys() -> Iterable[str]:
    from dataclasses import fields, is_dataclass

    from pipeline.config import GleanerConfig

    yield from (p.name for p in CONF_DIR.iterdir() if p.is_dir())
    config = GleanerConfig()
    for section in fields(config):
        values = getattr(config, section.name)
        if is_dataclass(values):
            yield from (f"{section.name}.{key.name}" for key in fields(values))
        else:
            yield section.name
