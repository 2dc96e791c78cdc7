"""What the server tells Prometheus of itself, in its text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from retrieval_index.batching import MicroBatcher
from retrieval_index.index import DenseIndex

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["ServerMetrics"]

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServerMetrics:
    """Counters of requests, and what index and batcher count themselves."""

    def __init__(self, index: DenseIndex, batcher: MicroBatcher[Any, Any]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._index = index
        self._batcher = batcher
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "retrieval_requests", "POST /retrieve", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "retrieval_request_seconds",
            "From a request read to its answer",
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(self)  # anything with collect()

    def request(self, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = self._index.stats
        counters = {
            "retrieval_queries": ("Queries asked", stats.queries),
            "retrieval_cache_hits": ("Queries answered from the results kept", stats.cache_hits),
            "retrieval_embedding_hits": ("Queries whose vector was kept", stats.embedding_hits),
            "retrieval_duplicates": ("Queries like another one of their batch", stats.duplicates),
            "retrieval_encoded": ("Queries sent through the encoder", stats.encoded),
            "retrieval_batches": ("Batches searched", self._batcher.batches),
            "retrieval_busy_seconds": ("Time inside searches", stats.busy_s),
        }
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(name, meaning, value=value)
        yield GaugeMetricFamily("retrieval_passages", "In the index", value=len(self._index))
        yield GaugeMetricFamily(
            "retrieval_waiting", "Queries not in a batch yet", value=self._batcher.num_waiting
        )

    def text(self) -> bytes:
        """The page of ``/metrics``."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
