"""From learner to engines: one transport interface, and the proof of every publish.

    learner ── transport.send(version) ──► every engine       (object store, CUDA IPC or NCCL)
        │                                     │ digest of what arrived
        └─ probe log-probabilities ──► equal? ◄┘ probe log-probabilities, prefix cache bypassed

A digest alone proves what arrived, not what is computed with: engines keep packed copies of
weights. The probe prompt goes through all of them. See docs/adr/0003-weight-transfer.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from actors.pool import ActorPool, Member
from pipeline.config import PolicyConfig
from pipeline.errors import InfrastructureError, UserError, WeightProofError
from pipeline.pools import PublishReport

__all__ = [
    "PROOF_BOUNDS",
    "GpuWeightSource",
    "LearnerDrivenTransport",
    "ObjectStoreTransport",
    "Publisher",
    "Sent",
    "WeightSource",
    "WeightTransport",
    "check_proof",
    "open_publisher",
    "open_transport",
    "probe_prompt",
]

#: Largest log-probability difference between learner and engine on the probe prompt that counts
#: as equal, by the engine's dtype. bfloat16: an estimate, learner and engine may each be
#: off by about 0.055, rounded up; to be measured on a GPU (docs/adr/0003-weight-transfer.md).
PROOF_BOUNDS = {"float32": 1e-4, "bfloat16": 1.5e-1}

_PROBE_LENGTH = 128


class WeightSource(Protocol):
    """The learner, as far as publishing needs it (implemented by ``actors.learner``).

    ``timeout_s`` is for the ranks. A lost learner that comes back first takes the time it takes.
    """

    async def weights(self, *, timeout_s: float) -> tuple[Any, str]:
        """``(tensors, digest)``: Hugging Face names to float32 numpy arrays, a tied output head
        left out, as a mapping or a Ray reference to one; and their `digest_tensors`."""
        ...

    async def probe_logprobs(self, token_ids: np.ndarray, *, timeout_s: float) -> np.ndarray:
        """float32[L-1]: log-probability of each token of int32[L] after those before it."""
        ...


@runtime_checkable
class GpuWeightSource(Protocol):
    """A learner group whose ranks hold a `WeightSender`."""

    async def send_weights(
        self, transport: str, version: int, hosts: Mapping[str, Any], *, timeout_s: float
    ) -> tuple[str, Mapping[str, Any]]:
        """Digest of what was sent, and each engine's WeightReceipt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What one send led to: an engine's name -> its WeightReceipt, or why there is none."""

    version: int
    digest: str  # computed by the learner
    receipts: Mapping[str, Any]


class WeightTransport(Protocol):
    """Moves the learner's current weights into engines."""

    async def send(self, version: int, members: Sequence[Member]) -> Sent:
        """To these engines."""
        ...

    async def resend(self, member: Member) -> Sent | None:
        """The weights of the last `send`, to one new engine; None where there was no send."""
        ...


class ObjectStoreTransport:
    """Through Ray's shared memory: written once by the learner, mapped by every engine."""

    def __init__(self, source: WeightSource, engines: ActorPool, *, timeout_s: float) -> None:
        self._source, self._engines, self._timeout_s = source, engines, timeout_s
        self._last: tuple[int, Any, str] | None = None

    async def send(self, version: int, members: Sequence[Member]) -> Sent:
        """See `WeightTransport.send`."""
        tensors, digest = await self._source.weights(timeout_s=self._timeout_s)
        if isinstance(tensors, Mapping):
            import ray

            tensors = ray.put(tensors)
        self._last = (version, tensors, digest)
        receipts = await self._engines.broadcast(
            "update_weights", tensors, version, members=members, timeout_s=self._timeout_s
        )
        return Sent(version=version, digest=digest, receipts=receipts)

    async def resend(self, member: Member) -> Sent | None:
        """See `WeightTransport.resend`."""
        if self._last is None:
            return None
        version, tensors, digest = self._last
        receipt = await self._engines.call_member(
            member, "update_weights", tensors, version, timeout_s=self._timeout_s
        )
        return Sent(version=version, digest=digest, receipts={member.name: receipt})


class WaitForPublishError(InfrastructureError):
    """A new engine can be given weights with the next publish only."""


class LearnerDrivenTransport:
    """CUDA IPC or NCCL: the learner's ranks drive vLLM's own transfer, see `WeightSender`.

    A new engine gets no weights between two publishes, because the learner may be ahead of what
    was published: it waits for the next one, or where no other engine is in service `resend`
    refuses.
    """

    def __init__(
        self, name: str, source: GpuWeightSource, engines: ActorPool, *, timeout_s: float
    ) -> None:
        self._name, self._source, self._engines = name, source, engines
        self._timeout_s = timeout_s
        self._sent = False

    async def send(self, version: int, members: Sequence[Member]) -> Sent:
        """See `WeightTransport.send`."""
        hosts = {member.name: member.host for member in members}
        self._sent = True
        digest, receipts = await self._source.send_weights(
            self._name, version, hosts, timeout_s=self._timeout_s
        )
        return Sent(version=version, digest=digest, receipts=receipts)

    async def resend(self, member: Member) -> Sent | None:
        """See `WeightTransport.resend`."""
        if not self._sent:
            return None
        if not self._engines.in_service:
            raise InfrastructureError(
                f"{member.name} cannot be given the published weights by {self._name}, and no "
                "other engine is left: the run must be resumed"
            )
        raise WaitForPublishError(f"{member.name} gets its weights with the next publish")


def open_transport(
    name: str, source: WeightSource, engines: ActorPool, *, timeout_s: float
) -> WeightTransport:
    """The transport called ``name`` (a key of ``actors.weight_receivers.BACKENDS``)."""
    if name == "object_store":
        return ObjectStoreTransport(source, engines, timeout_s=timeout_s)
    if not isinstance(source, GpuWeightSource):
        raise UserError(f"the learner cannot send weights by {name}")
    return LearnerDrivenTransport(name, source, engines, timeout_s=timeout_s)


class Publisher:
    """Implements ``pipeline.pools.WeightPublisher``: send, then have every engine prove it.

    An engine that cannot prove its weights is replaced, and its successor has to prove them
    before it takes work. Where not one engine can, WeightProofError ends the publish: the fault
    is then not that engine's.
    """

    def __init__(
        self,
        source: WeightSource,
        transport: WeightTransport,
        engines: ActorPool,
        *,
        probe_ids: np.ndarray,
        bound: float,
        timeout_s: float,
    ) -> None:
        self._source, self._transport, self._engines = source, transport, engines
        self._probe_ids, self._bound, self._timeout_s = probe_ids, bound, timeout_s
        self._expected: np.ndarray | None = None  # the learner's, of the last send
        self._lock = asyncio.Lock()  # a replacement must not miss a publish
        self._joining: dict[Member, asyncio.Future[None]] = {}  # that wait for the next publish
        engines.admit = self._bring_up

    async def publish(self, version: int) -> PublishReport:
        """Send the learner's weights as ``version`` and prove them in every engine in service."""
        began = time.monotonic()
        async with self._lock:
            joining, self._joining = self._joining, {}
            members = [*self._engines.in_service, *joining]
            sent = await self._transport.send(version, members)
            self._expected = await self._source.probe_logprobs(
                self._probe_ids, timeout_s=self._timeout_s
            )
            proofs = await asyncio.gather(*(self._proof(m, sent) for m in members))
            for member, joined in joining.items():
                proof = proofs[members.index(member)]
                if isinstance(proof, float):
                    joined.set_result(None)
                else:
                    joined.set_exception(proof)
        errors = [proof for proof in proofs if isinstance(proof, float)]
        failed = {m: p for m, p in zip(members, proofs, strict=True) if not isinstance(p, float)}
        await self._replace(failed, some_proved=bool(errors))
        stalls = [r.stall_s for r in sent.receipts.values() if not isinstance(r, Exception)]
        return PublishReport(
            version=version,
            digest=sent.digest,
            probe_error=max(errors, default=0.0),
            seconds=time.monotonic() - began,
            stall_s=max(stalls, default=0.0),
        )

    async def _proof(self, member: Member, sent: Sent) -> float | InfrastructureError:
        """The probe error of one engine, or why it must not be used."""
        receipt = sent.receipts.get(member.name)
        if isinstance(receipt, InfrastructureError):
            return receipt
        try:
            probe = await self._engines.call_member(
                member, "probe", self._probe_ids, timeout_s=self._timeout_s
            )
            assert self._expected is not None
            return check_proof(
                member.name, sent, receipt, probe, expected=self._expected, bound=self._bound
            )
        except InfrastructureError as error:
            return error

    async def _replace(
        self, failed: Mapping[Member, InfrastructureError], *, some_proved: bool
    ) -> None:
        for error in failed.values():
            if isinstance(error, WeightProofError) and not some_proved:
                raise error
        for member, error in failed.items():
            self._engines.retire(member, str(error))
        if not some_proved:  # all were lost: there is nobody to go on with
            await self._engines.wait_replaced()
            if not self._engines.in_service:
                raise InfrastructureError(
                    "no engine is left: " + "; ".join(map(str, failed.values()))
                )

    async def _bring_up(self, member: Member) -> None:
        """Give a new engine the published weights and have it prove them."""
        async with self._lock:
            try:
                sent = await self._transport.resend(member)
            except WaitForPublishError:
                joined = self._joining[member] = asyncio.get_running_loop().create_future()
            else:
                proof = await self._proof(member, sent) if sent is not None else 0.0
                if not isinstance(proof, float):
                    raise proof
                return
        await joined


def open_publisher(
    source: WeightSource,
    engines: ActorPool,
    *,
    policy: PolicyConfig,
    transport: str,
    timeout_s: float,
) -> Publisher:
    """The publisher of a run. ``transport`` is what the placement plan chose."""
    return Publisher(
        source,
        open_transport(transport, source, engines, timeout_s=timeout_s),
        engines,
        probe_ids=probe_prompt(policy),
        bound=PROOF_BOUNDS[policy.dtype],
        timeout_s=timeout_s,
    )


def check_proof(
    name: str, sent: Sent, receipt: Any, probe: Any, *, expected: np.ndarray, bound: float
) -> float:
    """The largest absolute log-probability difference, where the engine's proof holds.

    Raises WeightProofError where the digest, the version or a log-probability is not the
    learner's; the message says which.
    """
    refused = f"{name} cannot prove weight version {sent.version} and must not be used: "
    if receipt.digest != sent.digest:
        raise WeightProofError(
            f"{refused}the tensors it received have digest {receipt.digest[:16]}, "
            f"the learner sent {sent.digest[:16]}"
        )
    if probe.version != sent.version:
        raise WeightProofError(f"{refused}it answered the probe with version {probe.version}")
    if probe.logprobs.shape != expected.shape:
        raise WeightProofError(
            f"{refused}it gave {len(probe.logprobs)} log-probabilities for {len(expected)}"
        )
    error = float(np.abs(probe.logprobs - expected).max())
    if not error <= bound:  # also refuses NaN
        raise WeightProofError(
            f"{refused}its log-probabilities differ from the learner's by {error:.2e} on the "
            f"probe prompt (bound {bound:.0e}), although the right tensors arrived"
        )
    return error


def probe_prompt(policy: PolicyConfig) -> np.ndarray:
    """int32[L]: a fixed prompt that spreads over the whole vocabulary of the policy."""
    from transformers import AutoConfig

    try:
        vocabulary_size = int(AutoConfig.from_pretrained(policy.path).vocab_size)
    except OSError as error:
        raise UserError(f"policy.path={policy.path} has no readable config.json") from error
    length = min(_PROBE_LENGTH, policy.max_model_len - 1)
    # Multiples of a large prime (Knuth's multiplicative hash) visit the vocabulary evenly.
    return (np.arange(1, length + 1, dtype=np.int64) * 2654435761 % vocabulary_size).astype(
        np.int32
    )
