"""The configuration schema behind the Hydra YAML in ``conf/``, and its cross-field checks.

Importing this module loads neither torch nor ray nor vllm. Each component gets its own
section, never the whole. Every key is documented where it is defined; ``docs/configuration.md``
is generated from these comments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from pipeline.judging.config import AuditConfig, JudgeConfig, LabelConfig

__all__ = [
    "AlgorithmConfig",
    "BufferConfig",
    "ClusterConfig",
    "CompareConfig",
    "CorrectionConfig",
    "CurriculumConfig",
    "EvaluateConfig",
    "GleanerConfig",
    "LearnerConfig",
    "PolicyConfig",
    "ProtocolConfig",
    "ReplayConfig",
    "ReportConfig",
    "RetrieverConfig",
    "RftConfig",
    "RolloutConfig",
    "TaskConfig",
    "TrackerConfig",
    "TrainerConfig",
    "register_schema",
]


@dataclass
class PolicyConfig:
    """The model that is trained."""

    path: str = MISSING  # Hugging Face directory, hub name, or package:NAME (GGUF in a pip package)
    dtype: str = "float32"  # engine and master weights: float32 | bfloat16
    max_model_len: int = 768  # longest trajectory, in tokens


@dataclass
class ProtocolConfig:
    """The words between policy and environment."""

    style: str = "search_r1"  # search_r1 (tags) | qwen3_tools (native tool calls)
    system: str = ""  # system message; empty: none
    user: str = "{question}"  # user message, {question} is replaced
    # few-shot turns before the question, each {question: ..., reply: ...}
    examples: list[dict[str, str]] = field(default_factory=list)
    observation: str = "<information>{passages}</information>"  # what a search appends
    passage: str = "{title}: {text}"  # one passage, {rank} {title} {text} are replaced
    # opens a forced answer (search off)
    answer_prefix: str = "<think> I already know this. </think><answer>"
    passage_separator: str = "\n"  # between two passages
    max_queries: int = 1  # queries a round (qwen3_tools: entries of query_list)
    max_rounds: int = 4  # rounds a trajectory, the answer round included
    top_k: int = 3  # passages a search returns


@dataclass
class TaskConfig:
    """Corpus and questions, in the field's file formats."""

    name: str = "default"  # a name for logs and reports
    generate: bool = True  # made by pipeline.tasks at set-up; False: the files are yours
    dir: str = "data/default"  # where the generated files live
    corpus: str = "${task.dir}/corpus.jsonl"  # corpus file (JSONL, optionally gzipped)
    train: str = "${task.dir}/train.jsonl"  # training questions (JSONL or Parquet)
    dev: str = "${task.dir}/dev.jsonl"  # questions for tuning
    test: str = "${task.dir}/test.jsonl"  # questions for reported numbers only
    index: str = "${task.dir}/index"  # index directory; built from the corpus where missing
    seed: int = 0  # seed of the generated task
    num_train: int = 8000  # generated training questions
    num_dev: int = 300  # generated dev questions
    num_test: int = 1000  # generated test questions


@dataclass
class RolloutConfig:
    """Rollout pool: vLLM engines."""

    num_actors: int = 1  # actors in the pool
    threads: int = 1  # OpenMP threads an engine (CPU)
    num_gpus: float = 0.0  # GPU share an engine; 0: CPU build
    gpu_memory_utilization: float = 0.35  # vLLM's memory share of the whole GPU
    tensor_parallel_size: int = 1  # GPUs one engine is spread over
    kv_cache_gib: float = 1.0  # CPU build: memory for the KV cache
    max_num_seqs: int = 128  # most requests decoded together
    # what happens to the KV cache of running generations at a weight update: keep (they go on over
    # what old weights computed) | recompute (with the new weights, before the next token)
    kv_on_update: str = "keep"
    # CPU build: a second copy of the model takes new weights while the first computes (not with
    # enforce_eager=False); without it generation stands still meanwhile
    spare_model: bool = True
    prefix_caching: bool = True  # prompts share the KV cache of what they have in common
    chunked_prefill: bool = True  # a long prompt may be computed in parts, between others' tokens
    enforce_eager: bool = True  # no graph capture or compilation: starts faster
    temperature: float = 1.0  # sampling temperature of training rollouts
    top_p: float = 1.0  # nucleus sampling; 1: off
    top_k: int = 0  # sample from so many tokens; 0: all
    max_round_tokens: int = 96  # tokens the policy may sample in one round
    start_timeout_s: float = 300.0  # an actor must be ready after so many seconds
    request_timeout_s: float = 300.0  # one whole group; a search in it may take half of it
    max_retries: int = 2  # a failed group is tried on another engine so often


@dataclass
class RetrieverConfig:
    """Retriever pool: FAISS over sentence-transformers embeddings, or an HTTP endpoint."""

    num_actors: int = 1  # actors in the pool
    threads: int = 1  # CPU threads an actor
    num_gpus: float = 0.0  # GPU share an actor; 0: CPU
    # sentence-transformers directory, hub name (org/name, org/name@REVISION), or package:NAME of a
    # pip package
    encoder: str = MISSING
    query_prefix: str = ""  # put before every query, e.g. "query: " for e5
    passage_prefix: str = ""  # put before every passage, e.g. "passage: " for e5
    pooling: str = ""  # how one vector is made of a text's: mean | cls; empty: the model's own
    max_length: int = 0  # tokens of a text, the rest is cut; 0: the model's own
    factory: str = "Flat"  # FAISS factory string, or auto: by the size of corpus and memory
    search_parameters: str = ""  # FAISS's, of an approximate index: nprobe=32, efSearch=128
    hybrid: bool = False  # rankings by vector and by words (BM25) are fused; needs bm25s
    reranker: str = ""  # a cross-encoder (as encoder) that orders the best ones anew
    depth: int = 50  # passages that hybrid search and the reranker look at
    # index files, each of a range of rows: actor i searches file i modulo their number
    shards: int = 1
    degraded: str = "error"  # a shard that fails: error (the search fails) | partial (left out)
    batch_size: int = 32  # queries encoded together
    max_batch_wait_ms: float = 2.0  # how long a query may wait for company
    merge: bool = True  # queries of several callers are encoded together
    max_waiting: int = 16384  # queries that may wait at an actor; more are tried on another one
    cache_size: int = 50000  # rankings and query vectors kept, least recently used go first
    url: str = ""  # any /retrieve endpoint in place of an index
    start_timeout_s: float = 300.0  # an actor must be ready after so many seconds
    request_timeout_s: float = 60.0  # deadline of one call
    max_retries: int = 2  # a failed call is tried on another actor so often

    def reading(self) -> dict[str, Any]:
        """How the encoder reads texts, where that is not its own way: as ``build_index`` takes
        it."""
        wanted = {"pooling": self.pooling, "max_length": self.max_length}
        return {name: value for name, value in wanted.items() if value}

    def stages(self) -> dict[str, Any]:
        """What decides, beside the index, which passages are found: as ``DenseIndex.open`` takes
        it."""
        return {
            "search_parameters": self.search_parameters,
            "hybrid": self.hybrid,
            "reranker": self.reranker,
            "depth": self.depth,
        }


@dataclass
class AlgorithmConfig:
    """Credit assignment and objective."""

    name: str = "cw_grpo"  # a name for logs and reports
    # what a reward is compared with: group (mean of the group) | leave_one_out | none
    baseline: str = "group"
    scale: str = "group_std"  # group_std | batch (mean 0 and deviation 1 over the batch) | none
    # contribution (weights from verdicts) | uniform | process (verdicts as rewards of their own)
    credit: str = "contribution"
    signal: str = "joint"  # joint (u times v) | utility (u only) | correctness (v only)
    alpha: float = float("inf")  # temperature of the contribution softmax; 0 is GRPO
    no_contribution: str = "uniform"  # uniform | zero: a success in which no round contributed
    failed_verdict: str = "uniform"  # uniform | zero: a trajectory with a round whose judge failed
    # uniform | same (weighted like successes) | blame (weighted by 1 - p)
    failures: str = "uniform"
    process_coef: float = 1.0  # with credit=process: weight of a round's own advantage
    overlong_limit: int = 0  # policy tokens from which the reward is 1 less; 0: no length penalty
    overlong_margin: int = 0  # the penalty rises in a line over so many tokens before the limit
    aggregation: str = "token_mean"  # token_mean | sequence_mean | constant
    constant_normaliser: float = 0.0  # with aggregation=constant
    # ppo_clip | gspo (sequence ratio) | cispo | nll (supervised: the rft command)
    loss: str = "ppo_clip"
    clip_low: float = 0.2  # the ratio is clipped below 1 - clip_low
    clip_high: float = 0.2  # the ratio is clipped above 1 + clip_high
    kl_coef: float = 0.0  # KL to the frozen reference; 0: no reference is loaded
    kl_in: str = "loss"  # loss | reward (subtracted from the outcome before the baseline)
    kl_estimator: str = "k3"  # k1 | k2 | k3
    no_answer_reward: float = 0.0  # reward of a trajectory without an answer (0 or a little below)


@dataclass
class CorrectionConfig:
    """Off-policy correction: old weights, and an engine that rounds otherwise than the learner."""

    # the ratio's denominator: sampler | recomputed (the learner's policy as a train step starts)
    proximal: str = "sampler"
    kind: str = "none"  # none | importance | truncated | masked: the factor on a token's loss
    level: str = "token"  # token | round | sequence: what a ratio is taken for
    low: float = 0.5  # kind=masked: smaller ratios get factor 0
    high: float = 2.0  # kind=truncated: largest factor; kind=masked: larger ratios get factor 0
    geometric: bool = False  # a unit's ratio: geometric mean over its tokens, not their product


@dataclass
class LearnerConfig:
    """Learner group: DeepSpeed ranks."""

    num_actors: int = 1  # data-parallel ranks
    threads: int = 1  # CPU threads an actor
    num_gpus: float = 0.0  # a rank
    zero_stage: int = 0  # DeepSpeed ZeRO stage, 0 to 3
    offload_optimizer: bool = False  # optimizer states in host memory
    # compute: float32 | bfloat16 (from ZeRO stage 1 on) | autocast (fp32 weights, bf16 compute)
    dtype: str = "float32"
    lora_rank: int = 0  # train low-rank adapters of all linear layers only; 0: all weights
    lora_alpha: float = 0.0  # adapters are scaled by alpha / rank; 0: alpha is twice the rank
    optimizer: str = "adamw"  # adamw | sgd
    lr: float = 1.5e-4  # peak learning rate
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # AdamW's betas
    weight_decay: float = 0.0  # AdamW's weight decay
    warmup_steps: int = 0  # train steps of linear warm-up
    schedule: str = "constant"  # constant | linear | cosine (over trainer.steps)
    max_grad_norm: float = 1.0  # gradient clipping; 0: none
    tokens_per_micro_batch: int = 4096  # computed in one forward pass; a shared prefix once
    gradient_checkpointing: bool = False  # trade time for activation memory
    start_timeout_s: float = 600.0  # an actor must be ready after so many seconds
    step_timeout_s: float = 1200.0  # deadline of one train step
    # a lost learner is started again, from checkpoint and journal, so often in a run (CPU only)
    max_restarts: int = 3


@dataclass
class BufferConfig:
    """Trajectory buffer and asynchrony."""

    max_staleness: int = 1  # publishes between a group's admission and its train step
    groups_per_step: int = 16  # question groups a train step
    group_size: int = 8  # G
    # which finished groups a step takes: admission (strictly the oldest) | deadline (ahead of
    # stragglers, as long as none of them can come too late)
    order: str = "admission"
    # so many samples more than group_size are played of a group, as far as the slots have room; the
    # first group_size that end are the group, the others are aborted. Against stragglers, at a
    # price: it favours questions and ways that are short
    oversample: int = 0
    max_consecutive_filtered: int = 200  # zero-variance groups in a row that stop the run


@dataclass
class CurriculumConfig:
    """Which training questions are asked."""

    # a question whose last so many groups were filtered (solved by all samples, or by none) is
    # passed over for a while; 0: every question is asked in its turn
    skip_after: int = 0
    skip_for: int = 8000  # until so many groups were admitted since its last one


@dataclass
class TrainerConfig:
    """The loop."""

    steps: int = 30  # train steps; each publishes one weight version
    # training ends before this many minutes are over (evaluations not counted); 0: no limit
    minutes: float = 0.0
    minibatches_per_step: int = 1  # optimizer steps a train step
    seed: int = 0  # seed of question order, sampling and initial state
    evaluate_before: bool = True  # measure the starting policy
    evaluate_after: bool = True  # measure the trained policy
    evaluate_every: int = 0  # evaluate greedily after every so many steps; 0: never
    evaluate_at: list[int] = field(default_factory=list)  # also after these steps
    evaluate_on: str = "dev"  # split of the evaluations during training: train | dev | test
    journal: bool = True  # keep what the learner consumed, for the replay command
    # deadline of each call of a weight publish: export, update, proof. The recovery of a learner
    # that is lost in it has its own
    publish_timeout_s: float = 120.0
    # nothing moved for so many seconds: the log says which pool holds everything up, and the stacks
    # of all processes go to a file in run_dir; 0: never
    stall_s: float = 600.0


@dataclass
class CheckpointConfig:
    """Checkpoints of the learner. All else that a run goes on from is written as it happens."""

    every: int = 10  # train steps between two; 0: none but the best
    keep_last: int = 2  # so many of the last ones are kept
    keep_best: bool = True  # also that with the best evaluation (trainer.evaluate_every)


@dataclass
class SupervisorConfig:
    """The process that starts the driver of a training run, and starts it again when it dies."""

    max_restarts: int = 3  # with resume=auto, so often in all; 0: no supervisor


@dataclass
class EvaluateConfig:
    """Evaluation, in the train command (before and after) and on its own."""

    split: str = "test"  # which split of the task the train command evaluates on
    questions: str = ""  # evaluate command: question file(s), comma separated; empty: the split
    limit: int = 0  # only the first so many questions; 0: all
    samples: int = 1  # samples a question (needs a temperature above 0 when more than 1)
    temperature: float = 0.0  # 0: greedy
    sampled: int = 0  # also so many samples a question at rollout.temperature (pass@k)
    sampled_limit: int = 300  # questions that are sampled; 0: all
    without_search: bool = False  # also answer with no search allowed
    concurrency: int = 128  # episodes in flight


@dataclass
class RftConfig:
    """The baseline without RL: rejection-sampling fine-tuning (rft command)."""

    trained_tokens: int = 500000  # policy tokens to fine-tune on; take those of the run to compare
    groups_per_step: int = 32  # questions whose correct samples make one optimizer step


@dataclass
class ReplayConfig:
    """A run's weights computed again from its journal (replay command)."""

    to_step: int = 0  # the last train step to replay; 0: all that were published
    output: str = ""  # directory for the policy after it; empty: none is written


@dataclass
class ExportConfig:
    """A checkpoint as a plain Hugging Face directory (export command)."""

    checkpoint: str = "last"  # last | best (by the evaluations during training) | a step
    output: str = ""  # directory to write; empty: policy-STEP in the run directory


@dataclass
class CompareConfig:
    """Arms and seeds of a comparison (compare command)."""

    name: str = "credit"  # of the table: results are in DIRECTORY/NAME
    arms: dict[str, list[str]] = field(default_factory=dict)  # arm -> its overrides
    baseline: str = "grpo"  # the arm that the others are compared with, seed by seed
    base: list[str] = field(default_factory=list)  # overrides of all arms
    seeds: int = 8  # trainer.seed = 1, 2, ... of every arm
    only: list[str] = field(default_factory=list)  # arms to run now; empty: all
    # other comparisons: their finished runs of arms with the same overrides count here, too
    share: list[str] = field(default_factory=list)
    minutes: float = 0.0  # start no run that would end later than this; 0: no limit
    directory: str = "benchmarks/results/compare"  # one JSON file a finished run
    run_timeout_s: float = 21600.0  # deadline of one run
    score: float = 0.65  # "steps to reach": exact match of the checkpoints, joined by lines


@dataclass
class ClusterConfig:
    """Ray."""

    # local | auto | HOST:PORT | auto_or_local (inside a Ray job: that cluster, else local)
    address: str = "auto_or_local"
    num_cpus: int = 0  # CPUs of a local cluster; 0: all
    object_store_gib: float = 0.5  # size of Ray's object store in shared memory
    temp_dir: str = ""  # Ray's own directory; empty: a fresh one below the system's
    start_timeout_s: float = 120.0  # the asked resources must be free after so many seconds
    health_interval_s: float = 5.0  # every actor is asked so often whether it is there; 0: never
    health_timeout_s: float = 30.0  # one that is silent for so long is ended and replaced
    # what the profile needs on one GPU (the arithmetic is in its file); 0: no GPU
    gpu_memory_gib: float = 0.0


@dataclass
class TrackerConfig:
    """Metric sinks."""

    tensorboard: bool = True  # write TensorBoard event files
    wandb: bool = False  # log to Weights & Biases (key from WANDB_API_KEY)
    wandb_project: str = "gleaner"  # project there
    progress: str = "auto"  # auto | bar | plain | none


@dataclass
class ReportConfig:
    """The page at the end."""

    enabled: bool = True  # write report.html
    trajectories: int = 8  # whole trajectories shown
    trace: bool = True  # also write trace.json: what every actor did when, for Perfetto


@dataclass
class GleanerConfig:
    """A whole run."""

    run_dir: str = MISSING  # everything the run leaves behind; default below outputs/
    profile: str = MISSING  # name of the resources profile, e.g. cpu or gpu_default
    # never: run_dir must hold no run | auto: a run that is there goes on where it died
    resume: str = "never"
    # two runs on the same machine give the same weights, to the last bit: staleness 0, episodes in
    # lockstep, no prefix cache, no chunked prefill, nothing cached or merged in retrieval, no
    # trainer.minutes. Slower
    deterministic: bool = False
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    rft: RftConfig = field(default_factory=RftConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    warmstart: Any = None  # only for the warmstart command: pipeline.warmstart.config
    judge_training: Any = None  # only for the train_judge command: pipeline.judging.training_config


def register_schema() -> None:
    """Register the schema with Hydra as ``gleaner_schema``."""
    ConfigStore.instance().store(name="gleaner_schema", node=GleanerConfig)
