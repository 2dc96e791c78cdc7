"""The learner's side of CUDA IPC and NCCL: vLLM's native trainer engines, driven from a rank.

Runs inside every learner rank, because that is where the GPU tensors are; rank 0 is the sender
and drives the engines. Written against vLLM 0.32 and not run here for want of a GPU
(docs/gpu.md says which paths were exercised where).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from actors.weight_digest import WeightDigest
from pipeline.errors import InfrastructureError

__all__ = ["WeightSender", "rank_offset_of"]

_NamedWeights = Callable[[], Iterator[tuple[str, Any]]]


def rank_offset_of(engine_index: int, gpus_per_engine: int) -> int:
    """The first NCCL rank of an engine: rank 0 is the learner's, engines follow one another.

    >>> [rank_offset_of(i, gpus_per_engine=2) for i in range(3)]
    [1, 3, 5]
    """
    return 1 + engine_index * gpus_per_engine


class WeightSender:
    """One learner rank's end. ``named_weights`` yields whole tensors by Hugging Face name; with
    ZeRO 3 iterating it is a collective, so every rank calls `send`."""

    def __init__(
        self, transport: str, named_weights: _NamedWeights, *, rank: int, gpus_per_engine: int
    ) -> None:
        self._transport, self._rank, self._gpus = transport, rank, gpus_per_engine
        self._source = _HashedSource(named_weights)
        self._engine: Any = None
        self._connected: tuple[str, ...] = ()
        self._client = _EngineClient(gpus_per_engine)

    def send(
        self, version: int, hosts: Mapping[str, Any], *, timeout_s: float
    ) -> tuple[str, dict[str, Any]]:
        """Update the engines behind ``hosts`` (name -> Ray handle).

        Returns the digest of what was sent and each engine's WeightReceipt; on ranks other than
        0 nothing. Raises InfrastructureError for an engine that is late.
        """
        self._client.prepare(hosts, version, timeout_s)
        if self._connected != tuple(hosts):
            self._connect(hosts)
        self._source.digest = WeightDigest()
        self._engine.send_weights()
        if self._rank != 0:
            return "", {}
        return self._source.digest.hexdigest(), self._client.receipts

    def _connect(self, hosts: Mapping[str, Any]) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        if self._engine is not None:
            self._engine.shutdown()
        self._engine = WeightTransferTrainerFactory.trainer_init(
            self._init_info(len(hosts)), client=self._client, source=self._source
        )
        self._connected = tuple(hosts)

    def _init_info(self, num_engines: int) -> Any:
        if self._transport == "cuda_ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=self._rank, packed=True)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(
            rank=self._rank,
            master_address=_node_address(),
            master_port=_free_port(),
            world_size=rank_offset_of(num_engines, self._gpus),
            packed=True,
        )


class _HashedSource:
    """vLLM's WeightSource over the learner's weights; hashes what it yields."""

    def __init__(self, named_weights: _NamedWeights) -> None:
        self._named_weights = named_weights
        self._metadata: list[Any] = []
        self.digest = WeightDigest()

    def metadata(self) -> list[Any]:
        """Name, dtype and shape of every tensor, in the order of iteration."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        if not self._metadata:
            self._metadata = [
                ParamMeta(name, weight.dtype, tuple(weight.shape))
                for name, weight in self._named_weights()
            ]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name, weight in self._named_weights():
            self.digest.add(name, weight)
            yield name, weight


class _EngineClient:
    """vLLM's ``VLLMWeightSyncClient`` over our rollout actors: all engines at once, in time."""

    def __init__(self, gpus_per_engine: int) -> None:
        self._gpus = gpus_per_engine
        self.receipts: dict[str, Any] = {}

    def prepare(self, hosts: Mapping[str, Any], version: int, timeout_s: float) -> None:
        """Who the following calls go to."""
        self._hosts, self._version, self._timeout_s = hosts, version, timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = []
        for index in range(len(self._hosts)):
            offset = {"rank_offset": rank_offset_of(index, self._gpus)}
            infos.append({**init_info, **(offset if "rank_offset" in init_info else {})})
        self._each("init_weight_transfer", infos)

    def start_weight_update(self) -> None:
        self._each("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._each("receive_weights", [update_info] * len(self._hosts))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.receipts = self._each("finish_weight_update", [self._version] * len(self._hosts))

    def _each(self, method: str, arguments: list[Any] | None = None) -> dict[str, Any]:
        import ray

        calls = [
            host.call.remote(method, *([arguments[index]] if arguments else []))
            for index, host in enumerate(self._hosts.values())
        ]
        try:
            results = ray.get(calls, timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise InfrastructureError(
                f"engines {', '.join(self._hosts)} did not finish {method!r} within "
                f"{self._timeout_s:g} s"
            ) from None
        return dict(zip(self._hosts, results, strict=True))


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
