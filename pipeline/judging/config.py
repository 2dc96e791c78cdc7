"""Settings of judges: the pool, how it is audited, and labels by people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["AuditConfig", "JudgeConfig", "LabelConfig"]


@dataclass
class JudgeConfig:
    """Judge pool. Keys of language models are for ``name=openai`` and ``name=vllm``."""

    # evidence (a rule over known evidence) | openai (an OpenAI-compatible endpoint) | vllm (a model
    # in actors of ours) | ensemble (judge.members)
    name: str = "evidence"
    flip_probability: float = 0.0  # each signal is turned round so often: a judge that errs
    # judge a round while its episode goes on, not when its group has ended (with rounds=together: a
    # trajectory as soon as it ends): what the algorithm then does not need is wasted
    # (judge/wasted_rounds)
    early: bool = False
    # openai: the model's name there; vllm: Hugging Face directory or hub name
    model: str = ""
    # a prompt of pipeline/judging/prompts by its name, or a YAML file of yours
    prompt: str = "criteria_v1"
    rounds: str = "each"  # each (a call a round) | together (a call a trajectory)
    temperature: float = 0.0  # sampling temperature of the model
    samples: int = 1  # answers a round, combined; more than 1 needs a temperature above 0
    combine: str = "majority"  # majority | mean: of samples, and of the members of an ensemble
    max_tokens: int = 512  # of the answer on one round
    max_attempts: int = 3  # an answer that is no verdict is asked again, so often in all
    cache: str = ""  # file of verdicts that were given before, in any run; empty: none is kept
    base_url: str = ""  # openai: the endpoint; empty: OPENAI_BASE_URL, else OpenAI's own
    api_key_env: str = "OPENAI_API_KEY"  # openai: the environment variable that holds the key
    # openai: how the answer is held to its form: json_schema | json_object | none (only asked for)
    structured: str = "json_schema"
    concurrency: int = 16  # openai: most calls under way, an actor
    requests_per_minute: float = 0.0  # openai: most calls, an actor; 0: no limit
    call_timeout_s: float = 60.0  # openai: deadline of one try
    # openai: a try that fails in transport, is late or is refused for its rate is repeated so
    # often, after pauses that double, with jitter
    call_retries: int = 4
    price_input: float = 0.0  # money for a million prompt tokens
    price_output: float = 0.0  # money for a million answer tokens
    budget_tokens: float = 0.0  # most tokens, prompts and answers, all actors together; 0: no limit
    budget_money: float = 0.0  # most money, all actors together; 0: no limit
    # a spent budget: stop (the run ends, and can go on with a larger one) | degrade (from then on
    # rounds have no verdicts)
    on_budget: str = "stop"
    # rounds in a row without a verdict that stop the run (an actor's count; an endpoint that
    # answers nothing stops it earlier); 0: it never stops
    stop_after_failures: int = 200
    dtype: str = "float32"  # vllm: float32 | bfloat16
    max_model_len: int = 1024  # vllm: longest prompt with its answer, in tokens
    threads: int = 1  # vllm on a CPU: threads an actor
    num_gpus: float = 0.0  # vllm: GPU share an actor
    gpu_memory_utilization: float = 0.35  # vllm: memory share of the whole GPU
    tensor_parallel_size: int = 1  # vllm: GPUs one model is spread over
    kv_cache_gib: float = 0.5  # vllm on a CPU: memory for the KV cache
    max_num_seqs: int = 64  # vllm: most rounds judged together
    # ensemble: the judges, each a mapping of keys of this section
    members: list[Any] = field(default_factory=list)
    # file of labelled traces (the traces command makes one) of which now and then one is judged
    # beside the run's own; empty: none
    canaries: str = ""
    canary_every: int = 20  # trajectories judged between two canaries
    canary_window: int = 60  # the last so many canary rounds count
    # agreement with their labels below this, in u or v, is an alarm; of fewer than canary_window
    # rounds, at least 10, its 95 % interval must be below this
    canary_alarm: float = 0.85
    # what an alarm does: warn | uniform (rounds stay without verdicts while it lasts) | stop
    on_canary_alarm: str = "warn"
    num_actors: int = 1  # actors in the pool
    start_timeout_s: float = 120.0  # an actor must be ready after so many seconds
    groups_at_once: int = 4  # groups that an actor judges at once; the others wait their turn
    request_timeout_s: float = 60.0  # deadline of one call: all trajectories of a group
    max_retries: int = 2  # a failed call is tried on another actor so often


@dataclass
class AuditConfig:
    """How far a judge agrees with labels (audit command), and whether it can be talked into
    anything (attack command)."""

    traces: str = ""  # file of labelled traces: of the traces or the label command
    # audit: in place of traces, a question set with supporting facts, HotpotQA's JSON (or a
    # directory with questions.json); search traces with known labels are made from it
    questions: str = ""
    limit: int = 0  # audit: only the first so many traces (of questions: questions); 0: all
    repeats: int = 1  # audit: every round is judged so often; more than 1: the cache is not used
    page: bool = True  # audit: write audit.html, to read the disagreements
    bootstrap: int = 1000  # audit: resamples of questions behind the intervals
    concurrency: int = 16  # audit, attack: trajectories judged in a call
    request_timeout_s: float = 600.0  # audit, attack: deadline of one call
    attempts: int = 20  # attack: attempts an attack


@dataclass
class LabelConfig:
    """Labels by people (label command)."""

    traces: str = ""  # file of traces, labelled or not
    # write a page to label on, FILE.html, and the same rows without labels beside it, FILE.jsonl
    export: str = ""
    limit: int = 0  # export only so many traces, drawn at random with a fixed seed; 0: all
    import_from: str = ""  # read labelled rows (JSONL) and write traces with these labels
    output: str = ""  # file of those traces; empty: labelled.jsonl in the run directory
