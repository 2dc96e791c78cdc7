"""A Ray cluster of two nodes on this machine, of which the second can be lost and replaced."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.loopback_ray import loopback_environment

__all__ = ["TwoNodes", "two_nodes"]

OBJECT_STORE_BYTES = 300 * 2**20


class TwoNodes:
    """Made by `two_nodes`. Every node listens on loopback only."""

    def __init__(self, directory: Path, head_cpus: int, second_cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self._options = {
            "node_ip_address": "127.0.0.1",
            "object_store_memory": OBJECT_STORE_BYTES,
            "temp_dir": str(directory),
        }
        self._second_cpus = second_cpus
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                **self._options,
                "num_cpus": head_cpus,
                "include_dashboard": False,
            },
        )
        try:
            self.add_second()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """For ``cluster.address``."""
        return str(self._cluster.address)

    def add_second(self) -> None:
        """The second node, or a new one in the place of the lost one, is there."""
        self._second: Any = self._cluster.add_node(**self._options, num_cpus=self._second_cpus)

    def lose_second(self) -> None:
        """SIGKILL to its raylet and all that belongs to it; its actors end with it."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def stop(self) -> None:
        """End both."""
        self._cluster.shutdown()


@contextlib.contextmanager
def two_nodes(head_cpus: int, second_cpus: int) -> Iterator[TwoNodes]:
    """A cluster with its own directory and token; it ends with the block."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="gl-two-", ignore_cleanup_errors=True) as name:
        directory = Path(name)  # short: it holds sockets
        os.environ |= loopback_environment(directory)
        try:
            nodes = TwoNodes(directory / "ray", head_cpus, second_cpus)
            try:
                yield nodes
            finally:
                nodes.stop()
        finally:
            os.environ.clear()
            os.environ |= before
