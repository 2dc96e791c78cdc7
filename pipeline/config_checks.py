"""Cross-field checks of a composed configuration: one clear message a mistake."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipeline.config import GleanerConfig, LearnerConfig
from pipeline.credit.validate import check_algorithm, check_correction
from pipeline.errors import UserError
from pipeline.judging.address import check_no_secret
from pipeline.judging.config import JudgeConfig
from pipeline.judging.members import judge_members

__all__ = ["check", "check_training_sampling", "to_config", "to_section"]

_Section = TypeVar("_Section")

_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "policy.dtype": ("float32", "bfloat16"),
    "protocol.style": ("search_r1", "qwen3_tools"),
    "rollout.kv_on_update": ("keep", "recompute"),
    "retriever.degraded": ("error", "partial"),
    "retriever.pooling": ("", "mean", "cls"),
    "judge.name": ("evidence", "openai", "vllm", "ensemble"),
    "judge.rounds": ("each", "together"),
    "judge.combine": ("majority", "mean"),
    "judge.structured": ("json_schema", "json_object", "none"),
    "judge.on_budget": ("stop", "degrade"),
    "judge.dtype": ("float32", "bfloat16"),
    "judge.on_canary_alarm": ("warn", "uniform", "stop"),
    "learner.zero_stage": (0, 1, 2, 3),
    "learner.dtype": ("float32", "bfloat16", "autocast"),
    "learner.optimizer": ("adamw", "sgd"),
    "learner.schedule": ("constant", "linear", "cosine"),
    "buffer.order": ("admission", "deadline"),
    "resume": ("never", "auto"),
    "evaluate.split": ("train", "dev", "test"),
    "trainer.evaluate_on": ("train", "dev", "test"),
    "tracker.progress": ("auto", "bar", "plain", "none"),
}
_AT_LEAST: Mapping[str, float] = {
    "policy.max_model_len": 16,
    "protocol.max_rounds": 1,
    "protocol.max_queries": 1,
    "protocol.top_k": 1,
    "rollout.num_actors": 1,
    "rollout.threads": 1,
    "rollout.num_gpus": 0,
    "rollout.tensor_parallel_size": 1,
    "rollout.max_num_seqs": 1,
    "rollout.temperature": 0,
    "rollout.max_round_tokens": 1,
    "rollout.max_retries": 0,
    "retriever.num_actors": 1,
    "retriever.threads": 1,
    "retriever.depth": 1,
    "retriever.max_waiting": 1,
    "retriever.max_length": 0,
    "retriever.shards": 1,
    "retriever.max_retries": 0,
    "judge.num_actors": 1,
    "judge.groups_at_once": 1,
    "judge.temperature": 0,
    "judge.samples": 1,
    "judge.max_tokens": 1,
    "judge.max_attempts": 1,
    "judge.concurrency": 1,
    "judge.requests_per_minute": 0,
    "judge.call_retries": 0,
    "judge.price_input": 0,
    "judge.price_output": 0,
    "judge.budget_tokens": 0,
    "judge.budget_money": 0,
    "judge.stop_after_failures": 0,
    "judge.max_model_len": 16,
    "judge.threads": 1,
    "judge.num_gpus": 0,
    "judge.tensor_parallel_size": 1,
    "judge.max_num_seqs": 1,
    "judge.canary_every": 1,
    "judge.canary_window": 1,
    "judge.canary_alarm": 0,
    "judge.flip_probability": 0,
    "judge.max_retries": 0,
    "learner.num_actors": 1,
    "learner.threads": 1,
    "learner.lora_rank": 0,
    "learner.lora_alpha": 0,
    "learner.lr": 0,
    "learner.warmup_steps": 0,
    "learner.max_grad_norm": 0,
    "learner.max_restarts": 0,
    "checkpoint.every": 0,
    "checkpoint.keep_last": 1,
    "supervisor.max_restarts": 0,
    "learner.tokens_per_micro_batch": 1,
    "buffer.max_staleness": 0,
    "buffer.groups_per_step": 1,
    "buffer.group_size": 2,
    "buffer.max_consecutive_filtered": 1,
    "buffer.oversample": 0,
    "curriculum.skip_after": 0,
    "curriculum.skip_for": 1,
    "trainer.steps": 1,
    "trainer.minutes": 0,
    "trainer.stall_s": 0,
    "trainer.minibatches_per_step": 1,
    "evaluate.limit": 0,
    "evaluate.samples": 1,
    "evaluate.temperature": 0,
    "evaluate.sampled": 0,
    "evaluate.concurrency": 1,
    "audit.limit": 0,
    "audit.repeats": 1,
    "audit.bootstrap": 100,
    "audit.concurrency": 1,
    "audit.attempts": 1,
    "label.limit": 0,
    "cluster.num_cpus": 0,
    "rft.trained_tokens": 1,
    "rft.groups_per_step": 1,
    "replay.to_step": 0,
    "task.num_train": 1,
    "task.num_dev": 1,
    "task.num_test": 1,
}


def to_config(composed: DictConfig) -> GleanerConfig:
    """The composed YAML as dataclasses, checked. Raises UserError."""
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value; give it as {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from None
    assert isinstance(config, GleanerConfig)
    if config.deterministic:
        _make_deterministic(config)
    check(config)
    return config


def to_section(section: Any, kind: type[_Section], name: str, where: str) -> _Section:
    """A section that only one command reads, as its dataclass. Raises UserError for an unknown key
    or a value of the wrong type; ``where`` is the file that documents the keys."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), section or {})
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{name}: {message}; the keys are documented in {where}") from error
    assert isinstance(settings, kind)
    return settings


def _make_deterministic(config: GleanerConfig) -> None:
    """What ``deterministic=true`` stands for. Raises UserError for GPUs, whose sums have no
    order."""
    if config.learner.num_gpus or config.rollout.num_gpus:
        raise UserError(
            "deterministic=true is for runs without GPUs: learner.num_gpus=0, rollout.num_gpus=0"
        )
    config.trainer.minutes = 0.0
    config.buffer.max_staleness = 0
    config.buffer.oversample = 0
    config.rollout.prefix_caching = False
    config.rollout.chunked_prefill = False
    config.retriever.merge = False
    config.retriever.cache_size = 0


def check(config: GleanerConfig) -> None:
    """Raise UserError for the first value that is out of range or contradicts another."""
    _check_values(config)
    _check_timeouts(config)
    check_algorithm(config.algorithm)
    check_correction(config.correction)
    _check_together(config)


def check_training_sampling(config: GleanerConfig) -> None:
    """Training needs log-probabilities of the whole distribution that was sampled: the learner
    divides logits by the temperature and leaves no token out. Raises UserError."""
    rollout = config.rollout
    if rollout.top_p != 1 or rollout.top_k > 0:
        raise UserError(
            f"rollout.top_p={rollout.top_p} and rollout.top_k={rollout.top_k} leave tokens out "
            "when sampling, the learner's log-probabilities do not: every ratio would be wrong. "
            "Train with rollout.top_p=1 rollout.top_k=0"
        )
    if not rollout.temperature > 0:
        raise UserError(
            "rollout.temperature=0 samples the same trajectory each time: train with more than 0"
        )


def _check_values(config: Any, where: str = "") -> None:
    """Each value alone: that of the whole, or (a mapping) of one section, called ``where``."""
    sections = config if isinstance(config, dict) else None
    for key, allowed in _CHOICES.items():
        if sections is None or key.partition(".")[0] in sections:
            value, name = _get(config, key), _named(key, where)
            if value not in allowed:
                raise UserError(f"{name}={value!r} is unknown; use one of {_listed(allowed)}")
    for key, least in _AT_LEAST.items():
        if sections is None or key.partition(".")[0] in sections:
            value, name = _get(config, key), _named(key, where)
            if not value >= least:
                raise UserError(f"{name}={value} is too small; it must be at least {least:g}")


def _named(key: str, where: str) -> str:
    return f"{where}.{key.partition('.')[2]}" if where else key


def _check_timeouts(config: GleanerConfig) -> None:
    for section in fields(config):
        values = getattr(config, section.name)
        for key in fields(values) if is_dataclass(values) else ():
            if key.name.endswith("_timeout_s") and not getattr(values, key.name) > 0:
                raise UserError(f"{section.name}.{key.name} must be more than 0 seconds")


def _check_together(config: GleanerConfig) -> None:
    if config.trainer.minibatches_per_step > config.buffer.groups_per_step:
        raise UserError(
            f"trainer.minibatches_per_step={config.trainer.minibatches_per_step} is more than "
            f"buffer.groups_per_step={config.buffer.groups_per_step}: a mini-batch needs a group"
        )
    if config.rollout.max_round_tokens >= config.policy.max_model_len:
        raise UserError(
            f"rollout.max_round_tokens={config.rollout.max_round_tokens} must be less than "
            f"policy.max_model_len={config.policy.max_model_len}"
        )
    _check_learner(config.learner)
    _check_shards(config)
    _check_judge(config)
    _check_audit(config)
    if any(step < 1 for step in config.trainer.evaluate_at):
        raise UserError(
            f"trainer.evaluate_at={list(config.trainer.evaluate_at)} names train steps, from 1 on"
        )
    _check_length_penalty(config)
    if config.rollout.num_gpus > 0 and not config.cluster.gpu_memory_gib > 0:
        raise UserError(
            "rollout.num_gpus > 0 needs cluster.gpu_memory_gib: what the profile needs on a GPU"
        )
    parallel = config.rollout.tensor_parallel_size
    if parallel > 1 and config.rollout.num_gpus not in (0, parallel):
        raise UserError(
            f"rollout.tensor_parallel_size={parallel} spreads an engine over {parallel} whole "
            f"GPUs: it needs rollout.num_gpus={parallel}"
        )
    if config.evaluate.samples > 1 and config.evaluate.temperature == 0:
        raise UserError(
            f"evaluate.samples={config.evaluate.samples} greedy samples would all be the same; "
            "set evaluate.temperature above 0 or evaluate.samples=1"
        )


def _check_learner(learner: LearnerConfig) -> None:
    if learner.dtype == "bfloat16" and learner.zero_stage == 0:
        raise UserError(
            "learner.dtype=bfloat16 needs learner.zero_stage=1, 2 or 3, where DeepSpeed keeps "
            "float32 master weights (also with one rank); or use learner.dtype=autocast"
        )
    if learner.offload_optimizer and learner.zero_stage == 0:
        raise UserError(
            "learner.offload_optimizer=true has no effect with learner.zero_stage=0: DeepSpeed "
            "moves the optimizer of stages 1, 2 and 3 alone"
        )
    if len(learner.betas) != 2 or not all(0 <= beta < 1 for beta in learner.betas):
        raise UserError(
            f"learner.betas={list(learner.betas)} must be AdamW's two, each from 0 to below 1"
        )
    if not math.isfinite(learner.lr):
        raise UserError(f"learner.lr={learner.lr} must be finite")


def _check_length_penalty(config: GleanerConfig) -> None:
    limit, margin = config.algorithm.overlong_limit, config.algorithm.overlong_margin
    a_round = config.rollout.max_round_tokens
    if limit and limit - margin < a_round:
        raise UserError(
            f"algorithm.overlong_limit={limit} less its margin of {margin} is below one round of "
            f"rollout.max_round_tokens={a_round}: nearly all trajectories would lose reward. Size "
            f"both to the policy, e.g. algorithm.overlong_limit={4 * a_round} "
            f"algorithm.overlong_margin={a_round}"
        )


def _check_judge(config: GleanerConfig) -> None:
    judge = config.judge
    for key in ("flip_probability", "canary_alarm"):
        value = getattr(judge, key)
        if value > 1:
            raise UserError(f"judge.{key}={value} is a share: at most 1")
    if judge.early and judge.canaries:
        raise UserError(
            "judge.early=true and judge.canaries: engines ask the judge themselves then, past the "
            "watch over it; leave one of them out"
        )
    if judge.early and (judge.budget_tokens > 0 or judge.budget_money > 0):
        raise UserError(
            "judge.early=true and a budget: engines ask the judge themselves then, past what "
            "counts for the whole run; leave one of them out"
        )
    if config.deterministic and judge.name != "evidence":
        raise UserError(
            "deterministic=true needs judge.name=evidence: what a language model answers depends "
            "on what else it is asked at the moment"
        )
    if judge.on_canary_alarm == "uniform" and config.algorithm.failed_verdict != "uniform":
        raise UserError(
            "judge.on_canary_alarm=uniform needs algorithm.failed_verdict=uniform: it takes the "
            "verdicts away, and that key says what becomes of rounds without"
        )
    members = judge_members(judge)
    for number, member in enumerate(members):
        where = f"judge.members[{number}]" if judge.name == "ensemble" else "judge"
        _check_values({"judge": member}, where)
        _check_model(member, where)
    if judge.budget_money > 0 and not any(m.price_input > 0 or m.price_output > 0 for m in members):
        raise UserError("judge.budget_money needs judge.price_input and judge.price_output")


def _check_model(judge: JudgeConfig, where: str) -> None:
    """One judge, or one member of an ensemble."""
    if judge.name in ("openai", "vllm") and not judge.model:
        raise UserError(f"{where}.name={judge.name} needs {where}.model")
    if judge.samples > 1 and judge.temperature == 0:
        raise UserError(
            f"{where}.samples={judge.samples} greedy answers would all be the same; set "
            f"{where}.temperature above 0 or {where}.samples=1"
        )
    check_no_secret(judge.base_url, f"{where}.base_url", judge.api_key_env)


def _check_audit(config: GleanerConfig) -> None:
    if config.audit.traces and config.audit.questions:
        raise UserError(
            "audit.traces and audit.questions are both given: an audit is over one of them"
        )
    if config.label.export and config.label.import_from:
        raise UserError(
            "label.export and label.import_from are both given: export, label, then import"
        )


def _check_shards(config: GleanerConfig) -> None:
    retriever = config.retriever
    if retriever.url and (retriever.hybrid or retriever.reranker or retriever.search_parameters):
        raise UserError(
            "retriever.hybrid, reranker and search_parameters are the server's business where "
            "retriever.url is set; leave them out"
        )
    if config.deterministic and retriever.degraded == "partial":
        raise UserError(
            "deterministic=true needs retriever.degraded=error: else a failure would decide what "
            "is found"
        )
    if retriever.shards == 1:
        return
    if retriever.num_actors < retriever.shards:
        raise UserError(
            f"retriever.shards={retriever.shards} needs an actor for each: "
            f"retriever.num_actors={retriever.shards}, or a multiple for replicas"
        )
    if retriever.url or retriever.hybrid or retriever.reranker:
        raise UserError(
            f"retriever.shards={retriever.shards}: actors of one shard search by vector alone; "
            "leave out retriever.url, retriever.hybrid and retriever.reranker, or set "
            "retriever.shards=1"
        )


def _get(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(str(v) for v in values)
