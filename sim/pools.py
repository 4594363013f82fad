"""Where the slices of a shared search are run: processes of this machine, or a Dask cluster.

Both are `concurrent.futures.Executor`s; nothing else of them is used.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Final, final

from sim.errors import UsageError
from sim.watch import watched

LOCAL: Final = "local"  # as an address: a Dask cluster of this machine, for the time of the run
INSTALL: Final = "--cluster needs Dask distributed: pip install 'rcusim[cluster]'"


@final
@dataclass(frozen=True)
class Pool:
    """Workers.

    executor  a new one, when the last has broken
    workers   how many slices are run at once
    close     lets go of what the executors share
    """

    executor: Callable[[], Executor]
    workers: int
    close: Callable[[], None] = lambda: None


def processes(jobs: int) -> Pool:
    """Processes of this machine.

    They are started anew, not forked: what a fork would inherit (open files, a half-drawn progress
    line) is no use to them.
    """
    context = multiprocessing.get_context("spawn")

    def executor() -> Executor:
        made = ProcessPoolExecutor(jobs, mp_context=context, initializer=worker_begins)
        with without_interrupts():
            for _ in range(jobs):
                made.submit(int)  # starts a worker
        return made

    return Pool(executor, jobs)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes and threads that are started here never see Ctrl-C; this thread does, later."""
    resource_tracker.ensure_running()  # or whoever starts it lets interrupts in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_begins() -> None:
    """In a new worker: Ctrl-C is its parent's business, and without the parent there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watched()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """Leave when the parent is gone, however it went: it can be killed at any moment."""
    parent.join()
    os._exit(1)


def cluster(address: str, jobs: int | None) -> Pool:
    """A Dask cluster: that of a scheduler's address, or a local one of `jobs` processes."""
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise UsageError(INSTALL) from None
    if address == LOCAL:
        # One thread each: an execution has its process to itself.
        with without_interrupts():
            local = distributed.LocalCluster(
                n_workers=jobs or os.cpu_count() or 1,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.ERROR,
            )
            return dask(distributed.Client(local), [local])
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UsageError(f"--cluster {address}: {error}") from None
    return dask(client, [])


def dask(client: Any, own: list[Any]) -> Pool:
    """The workers of a Dask client; `own` is closed with it."""
    workers = len(client.scheduler_info(n_workers=-1)["workers"])

    def close() -> None:
        for one in (client, *own):
            one.close()

    # `pure` would make one of two slices that look the same.
    return Pool(lambda: client.get_executor(pure=False), max(workers, 1), close)
