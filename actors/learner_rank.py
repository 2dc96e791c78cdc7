"""One data-parallel rank of the learner: forward, loss, backward, step. A plain class.

It sees samples only and does not know which algorithm made them. torch and DeepSpeed are
imported in the constructor, so every machine can import this module.

    job = LearnerJob(config, objective, model_path=..., temperature=1.0, total_steps=30)
    rank = LearnerRank(job)
    rank.start()                                # world size 1: no Ray needed
    metrics = rank.train_step(make_rank_batches(samples, normaliser, 1, 4096)[0])
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.learning_rate import learning_rate
from actors.policy_model import load_policy, policy_directory, save_policy
from actors.weight_digest import digest_tensors
from pipeline.atomic import sync_tree
from pipeline.batch import MicroBatch, TokenLogprobs, TrainBatch
from pipeline.config import LearnerConfig
from pipeline.credit.objective import Objective
from pipeline.errors import GleanerError, UserError

if TYPE_CHECKING:
    import torch

__all__ = ["LearnerJob", "LearnerRank"]

_COUNTERS = ("_steps", "_busy_s", "_trained_tokens")  # of a rank, in its checkpoint


@dataclass(frozen=True)
class LearnerJob:
    """What all ranks of a learner train. ``temperature`` is the sampler's: logits are divided by
    it. ``total_steps`` counts train steps of ``minibatches_per_step`` optimizer steps each.
    ``gpus_per_engine``: over which each engine that weights are sent to is spread."""

    config: LearnerConfig
    objective: Objective
    model_path: str
    temperature: float
    total_steps: int
    minibatches_per_step: int = 1
    seed: int = 0
    gpus_per_engine: int = 1


class LearnerRank:
    """Make it, then ``start``. All ranks must make the same calls in the same order."""

    def __init__(
        self, job: LearnerJob, *, rank: int = 0, world_size: int = 1, host: str = "127.0.0.1"
    ) -> None:
        """Rank 0 listens on ``host``."""
        import torch

        torch.set_num_threads(job.config.threads)
        self._config, self._objective = job.config, job.objective
        self._rank, self._world_size = rank, world_size
        self._temperature = job.temperature if job.temperature > 0 else 1.0
        self._total_steps, self._minibatches = job.total_steps, job.minibatches_per_step
        self._seed, self._source = job.seed, policy_directory(job.model_path)
        self._gpus_per_engine = job.gpus_per_engine
        self._steps, self._busy_s, self._trained_tokens = 0, 0.0, 0
        self._store = None
        self._sender: Any = None
        self._address = (host, 0)
        if rank == 0:
            self._store = torch.distributed.TCPStore(
                host, 0, world_size, is_master=True, wait_for_workers=False
            )
            self._address = (host, self._store.port)

    def meeting_point(self) -> tuple[str, int]:
        """Host and port where the ranks meet; known by rank 0 once it is made."""
        return self._address

    def start(self, address: tuple[str, int] | None = None) -> None:
        """Join the other ranks at rank 0's meeting point, load the policy and build the engine.

        Raises UserError for a policy that cannot be loaded.
        """
        import torch

        from actors.deepspeed_engine import DeepSpeedEngine, join_ranks
        from actors.lora import add_adapters
        from actors.policy_scorer import PolicyScorer
        from actors.tree_attention import NAME, register

        torch.manual_seed(self._seed)
        address = address or self._address
        store = self._store or torch.distributed.TCPStore(*address, self._world_size)
        join_ranks(store, self._rank, self._world_size, self._config, address)
        register()
        self._device = torch.device("cuda" if self._config.num_gpus > 0 else "cpu")
        half = self._config.dtype == "bfloat16"
        compute = torch.bfloat16 if self._config.dtype == "autocast" else None

        def scorer() -> PolicyScorer:
            dtype = torch.bfloat16 if half else torch.float32
            model = load_policy(self._source, dtype=dtype, attention=NAME)
            return PolicyScorer(model.to(self._device), compute)

        policy = scorer()
        if self._config.lora_rank:
            add_adapters(policy.model, self._config)
            policy.to(self._device)
        if self._config.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
        self._model = policy.model
        self._reference = None
        if self._objective.needs_reference and not self._config.lora_rank:
            self._reference = scorer().eval().requires_grad_(False)
        self._engine = DeepSpeedEngine(policy, self._config, self._world_size)

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step over this rank's share. The metrics are those of all ranks."""
        from actors.loss_metrics import LossMetrics

        began = time.perf_counter()
        metrics = LossMetrics(batch.version)
        for i, micro_batch in enumerate(batch.micro_batches):
            last = i == len(batch.micro_batches) - 1
            self._engine.begin(last=last)
            loss = self._loss(micro_batch, batch.normaliser, metrics)
            self._engine.accumulate(loss, last=last)
        rate = learning_rate(self._config, self._steps // self._minibatches, self._total_steps)
        grad_norm = self._engine.step(rate)
        self._steps += 1
        totals = metrics.reduced(self._device)
        if not (np.isfinite(grad_norm) and np.isfinite(totals["loss"])):
            raise UserError(
                f"the update is not finite (loss {totals['loss']}, gradient norm {grad_norm}) at "
                f"optimizer step {self._steps}: lower learner.lr, or use learner.dtype=float32"
            )
        update_s = time.perf_counter() - began
        self._busy_s += update_s
        self._trained_tokens += int(totals["trained_tokens"])
        return {**totals, "grad_norm": grad_norm, "lr": rate, "update_s": update_s}

    def logprobs(
        self, batch: TrainBatch, which: Literal["current", "reference"]
    ) -> list[TokenLogprobs]:
        """Log-probabilities of the policy's tokens, with the sampler's temperature applied."""
        with self._scorer(which) as scorer:
            return [
                TokenLogprobs(
                    sample_P=m.sample_P,
                    place_P=m.place_P,
                    logprobs_P=self._score(scorer, m).cpu().numpy(),
                )
                for m in batch.micro_batches
            ]

    def probe_logprobs(self, token_ids: np.ndarray) -> np.ndarray:
        """float32[L-1]: ``log p(token t+1 | tokens <= t)`` of int32[L], temperature 1, and at
        the weights' own precision (no autocast): what an engine with these weights computes."""
        import torch

        with torch.no_grad():
            inputs = _probe_input(token_ids, self._device)
            logprobs, _ = self._engine.engine(inputs, 1.0, autocast=False)
        return logprobs.float().cpu().numpy()

    def weights(self) -> tuple[dict[str, np.ndarray], str]:
        """``(float32 tensors by Hugging Face name, tied ones once; their digest)``.

        With ZeRO 3 all ranks must call it; all but rank 0 return nothing.
        """
        gathered = {}
        for name, weight in self._engine.named_weights():
            if self._rank == 0:
                gathered[name] = weight.float().cpu().numpy().copy()
        return (gathered, digest_tensors(gathered)) if self._rank == 0 else ({}, "")

    def digest(self) -> str:
        """The digest of `weights`, which stay where they are. All ranks must call it."""
        return self.weights()[1]

    def send_weights(
        self, transport: str, version: int, hosts: Mapping[str, Any], timeout_s: float
    ) -> tuple[str, dict[str, Any]]:
        """From GPU to GPU, to the engines behind ``hosts``: see ``actors.weight_senders``."""
        from actors.weight_senders import WeightSender

        if self._sender is None:
            self._sender = WeightSender(
                transport,
                self._engine.named_weights,
                rank=self._rank,
                gpus_per_engine=self._gpus_per_engine,
            )
        return self._sender.send(version, hosts, timeout_s=timeout_s)

    def export_policy(self, directory: str) -> None:
        """Write a plain Hugging Face directory, atomically. All ranks must call it."""
        state = {}
        for name, weight in self._engine.named_weights():
            if self._rank == 0:
                state[name] = weight.cpu().clone()
        if self._rank == 0:
            save_policy(self._model, state, self._source, Path(directory))

    def save_checkpoint(self, directory: str) -> None:
        """Write all that training goes on from: DeepSpeed's state (weights, optimizer), counters
        and the random state. All ranks must call it; synced to disk."""
        import torch

        state = {name: getattr(self, name) for name in _COUNTERS}
        self._engine.save(directory, {"gleaner": {**state, "random": torch.get_rng_state()}})
        if self._rank == 0:
            sync_tree(Path(directory))

    def load_checkpoint(self, directory: str) -> None:
        """Become what `save_checkpoint` wrote. All ranks must call it, as many as wrote it."""
        import torch

        state = self._engine.load(directory)["gleaner"]
        torch.set_rng_state(state.pop("random"))
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def stats(self) -> dict[str, float]:
        """Totals: ``busy_s`` in train steps, ``trained_tokens`` (the policy's, all ranks)."""
        return {"busy_s": self._busy_s, "trained_tokens": float(self._trained_tokens)}

    def close(self) -> None:
        """Leave the process group."""
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    @contextmanager
    def _scorer(self, which: Literal["current", "reference"]) -> Iterator[Any]:
        """The policy, or the frozen reference: with LoRA the policy without its adapters."""
        if which == "current":
            yield self._engine.engine
        elif not self._objective.needs_reference:
            raise GleanerError("no reference policy is loaded: algorithm.kl_coef is 0")
        elif self._reference is not None:
            yield self._reference
        else:
            from actors.lora import adapters_off

            with adapters_off(self._model):
                yield self._engine.engine

    def _score(self, scorer: Any, micro_batch: MicroBatch) -> torch.Tensor:
        import torch

        from actors.policy_scorer import scorer_input

        with torch.no_grad():
            logprobs, _ = scorer(scorer_input(micro_batch, self._device), self._temperature)
        return logprobs

    def _loss(self, micro_batch: MicroBatch, normaliser: float, metrics: Any) -> torch.Tensor:
        """This micro-batch's part of the batch's loss."""
        from actors.loss_metrics import micro_batch_loss
        from actors.policy_scorer import scorer_input

        inputs = scorer_input(micro_batch, self._device)
        logprobs_P, entropy_P = self._engine.engine(inputs, self._temperature)
        return micro_batch_loss(
            micro_batch, logprobs_P, entropy_P, self._objective, normaliser, metrics
        )


def _probe_input(token_ids: np.ndarray, device: torch.device) -> Any:
    """One row in which every token but the first is predicted."""
    import torch

    from actors.policy_scorer import ScorerInput
    from actors.tree_attention import TreeBlock, TreePlan

    tokens = torch.as_tensor(np.asarray(token_ids, np.int64), device=device)
    places = torch.arange(len(tokens), device=device)
    block = TreeBlock(keys_BM=places[None], queries_BQ=places[None], mask_BQM=None)
    return ScorerInput(
        token_ids_U=tokens,
        positions_U=places,
        attention=TreePlan(blocks=(block,), slots_N=places),
        last_attention=TreePlan(blocks=(block,), slots_N=places[:-1]),
        head_nodes_K=places[:-1],
        head_index_P=places[:-1],
        targets_P=tokens[1:],
    )
