"""The members of an ensemble: each a mapping of keys of the section ``judge``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import UserError
from pipeline.judging.config import JudgeConfig

__all__ = ["judge_members", "judges_by_round"]

#: What a member may say of itself; all else is the pool's, and the ensemble's.
KEYS = (
    "name",
    "model",
    "prompt",
    "rounds",
    "temperature",
    "samples",
    "combine",
    "max_tokens",
    "max_attempts",
    "cache",
    "base_url",
    "api_key_env",
    "structured",
    "concurrency",
    "requests_per_minute",
    "call_timeout_s",
    "call_retries",
    "price_input",
    "price_output",
    "dtype",
    "max_model_len",
    "threads",
    "gpu_memory_utilization",
    "kv_cache_gib",
    "max_num_seqs",
)


def judge_members(config: JudgeConfig) -> list[JudgeConfig]:
    """The settings of every judge in an actor: those of the members of an ensemble, the ensemble's
    own keys where they say nothing; of any other judge its own.

    Raises UserError for a member that is none, an unknown key, a value of the wrong type.
    """
    if config.name != "ensemble":
        return [config]
    if not config.members:
        raise UserError("judge.name=ensemble needs judge.members, e.g. [{name: evidence}]")
    return [_member(config, keys, n) for n, keys in enumerate(config.members)]


def judges_by_round(config: JudgeConfig) -> bool:
    """Whether a round is judged without those after it: by no model that reads all together."""
    return all(
        member.name == "evidence" or member.rounds == "each" for member in judge_members(config)
    )


def _member(config: JudgeConfig, keys: Any, number: int) -> JudgeConfig:
    where = f"judge.members[{number}]"
    if not isinstance(keys, Mapping) or "name" not in keys:
        raise UserError(f"{where}={keys!r} must be a mapping with a name, e.g. {{name: evidence}}")
    unknown = set(keys) - set(KEYS)
    if unknown:
        raise UserError(
            f"{where} has no key {', '.join(sorted(map(str, unknown)))}; a member's keys are "
            f"{', '.join(KEYS)}"
        )
    if keys["name"] == "ensemble":
        raise UserError(f"{where} is an ensemble itself: write its members here")
    own = {**asdict(config), "members": [], **dict(keys)}
    try:
        member = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(JudgeConfig), own))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    assert isinstance(member, JudgeConfig)
    return member
