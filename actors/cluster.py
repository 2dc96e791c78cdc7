"""The Ray cluster of a run: a local one that lives as long as the run, or an existing one.

    with running_cluster(config, plan) as cluster:      # checks the plan against what is there
        placements = cluster.placements("rollout")      # one scheduling strategy an actor

A local cluster has its own temporary directory, listens on loopback only, and ends with the
driver, however that ends: the kernel ends Ray's processes with their parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.placement import PlacementPlan
from pipeline.config import ClusterConfig
from pipeline.errors import InfrastructureError, UserError

__all__ = ["Cluster", "resolve_address", "running_cluster"]

# Ray puts sockets below its directory, and a socket's path may have 107 bytes.
_MAX_TEMP_DIR_LENGTH = 40
_GIB = 2**30
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A connection to Ray, with the resources of one run reserved."""

    address: str
    namespace: str
    is_local: bool
    plan: PlacementPlan
    group: Any  # Ray's placement group; None where the plan reserves nothing

    def placements(self, pool: str) -> list[Any]:
        """A scheduling strategy for each actor of a pool; None where it reserves nothing."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        numbers = [
            self.plan.bundle_of(pool, actor.index)
            for actor in self.plan.actors
            if actor.pool == pool
        ]
        return [
            None
            if number is None
            else PlacementGroupSchedulingStrategy(
                placement_group=self.group, placement_group_bundle_index=number
            )
            for number in numbers
        ]


@contextlib.contextmanager
def running_cluster(config: ClusterConfig, plan: PlacementPlan) -> Iterator[Cluster]:
    """Start or join a cluster, reserve the plan's resources, and leave nothing behind.

    Raises UserError where no cluster answers, where Ray cannot start (its reason is in the
    message), or where the cluster lacks what the plan asks for.
    """
    address = resolve_address(config.address)
    if address == "local":
        # Ray listens on all interfaces unless it takes itself for a single-machine build, which
        # it decides when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    namespace = f"gleaner-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        with _own_sigterm():
            if address == "local":
                stack.enter_context(_local_ray(config, plan, namespace))
            else:
                stack.enter_context(_joined_ray(address, namespace))
        plan.check(ray.cluster_resources())
        group = stack.enter_context(_reserved(plan, config.start_timeout_s))
        yield Cluster(
            address=ray.get_runtime_context().gcs_address,
            namespace=namespace,
            is_local=address == "local",
            plan=plan,
            group=group,
        )


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the driver's SIGTERM handler: ``ray.init`` in the block puts its own in the place."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def resolve_address(address: str) -> str:
    """``local``, or the address to join. Inside a Ray job ``auto_or_local`` is that cluster.

    Raises UserError for something that is no address.
    """
    if address == "auto_or_local":
        return "auto" if os.environ.get("RAY_ADDRESS") else "local"
    if address in ("local", "auto") or ":" in address:
        return address
    raise UserError(
        f"cluster.address={address!r} is no address: use local, auto, auto_or_local or HOST:PORT"
    )


@contextlib.contextmanager
def _local_ray(config: ClusterConfig, plan: PlacementPlan, namespace: str) -> Iterator[None]:
    import ray

    num_cpus = config.num_cpus or len(os.sched_getaffinity(0))
    if not plan.num_gpus:
        plan.check({"CPU": float(num_cpus)})  # before anything is started
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray lowers its workers' priority (nice 15); here they are the work itself.
    os.environ.setdefault("RAY_worker_niceness", "0")
    directory, is_own = _temp_dir(config.temp_dir)
    try:
        _init_local_ray(config, num_cpus, namespace, directory)
        yield
    finally:
        ray.shutdown()
        if is_own:
            shutil.rmtree(directory, ignore_errors=True)


def _init_local_ray(config: ClusterConfig, num_cpus: int, namespace: str, directory: Path) -> None:
    """Start Ray; on a machine so busy that its own 30 s are too short, again until the deadline."""
    import ray

    deadline = time.monotonic() + config.start_timeout_s
    while True:
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=int(config.object_store_gib * _GIB),
                include_dashboard=False,
                namespace=namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(directory),
                _node_ip_address="127.0.0.1",
            )
            return
        except Exception as error:  # transport boundary: Ray raises many kinds, also bare Exception
            ray.shutdown()
            overloaded = "timed out during startup" in str(error)
            if overloaded and time.monotonic() < deadline:
                continue
            kind = InfrastructureError if overloaded else UserError  # another try may help, or not
            raise kind(
                f"Ray did not start on this machine: {_first_line(error)} Stop other programs if "
                "it is overloaded, lower cluster.object_store_gib if memory is short, and see "
                f"{directory} (kept where cluster.temp_dir names it) for Ray's logs"
            ) from error


@contextlib.contextmanager
def _joined_ray(address: str, namespace: str) -> Iterator[None]:
    import ray

    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if ":" in target and "://" not in target:
        _check_listens(target)  # Ray itself would try for minutes
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises many kinds here
        raise _no_cluster(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Raise UserError where nothing accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"cluster.address={address}: no Ray cluster answers there ({_first_line(error)}); "
        "start one with `ray start --head`, or use cluster.address=local"
    )


@contextlib.contextmanager
def _reserved(plan: PlacementPlan, timeout_s: float) -> Iterator[Any]:
    """A placement group with the plan's bundles; waits for other runs to make room."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    if not plan.bundles:
        yield None
        return
    group = placement_group([bundle.resources() for bundle in plan.bundles], strategy="PACK")
    if not group.wait(timeout_seconds=int(timeout_s)):
        remove_placement_group(group)
        plan.check(ray.available_resources())
        raise UserError(
            f"the cluster did not reserve {plan.num_cpus:g} CPUs and {plan.num_gpus:g} GPUs "
            f"within {timeout_s:g} s: no single node may have room for one of the bundles "
            f"{[bundle.resources() for bundle in plan.bundles]}"
        )
    try:
        yield group
    finally:
        with contextlib.suppress(Exception):  # a cluster that went away needs no tidying
            remove_placement_group(group)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


def _temp_dir(configured: str) -> tuple[Path, bool]:
    """Ray's directory, and whether it is ours to remove."""
    if not configured:
        return Path(tempfile.mkdtemp(prefix="gleaner-")), True
    if len(configured) > _MAX_TEMP_DIR_LENGTH:
        raise UserError(
            f"cluster.temp_dir={configured} is too long for the sockets that Ray makes in it: "
            f"use a path of at most {_MAX_TEMP_DIR_LENGTH} characters"
        )
    Path(configured).mkdir(parents=True, exist_ok=True)
    return Path(configured), False
