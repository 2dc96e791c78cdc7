"""Worker processes of a supervised training: one process group, one function in each."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from datetime import timedelta

from pipeline.errors import GleanerError
from pipeline.supervisor import die_with_parent
from pipeline.warmstart.config import SupervisedConfig

__all__ = ["Log", "run_workers"]

Log = Callable[[str], None]
Work = Callable[[int, Log], None]  # rank, and where rank 0 says how it goes


def run_workers(work: Work, config: SupervisedConfig) -> None:
    """Run ``work`` (picklable) in ``config.workers`` processes, joined by gloo on this machine.

    Raises GleanerError where one fails.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    workers = [
        context.Process(target=_run, args=(rank, port, work, config), daemon=True)
        for rank in range(config.workers)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
    failed = [rank for rank, worker in enumerate(workers) if worker.exitcode != 0]
    if failed:
        raise GleanerError(f"training: worker {failed[0]} failed; its traceback is above")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(rank: int, port: int, work: Work, config: SupervisedConfig) -> None:
    """One worker process, from start to end."""
    import torch
    import torch.distributed as dist

    die_with_parent()
    torch.set_num_threads(config.threads)
    if config.workers > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=config.workers,
            timeout=timedelta(seconds=config.step_timeout_s),
        )
    work(rank, (lambda line: print(line, flush=True)) if rank == 0 else (lambda line: None))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
