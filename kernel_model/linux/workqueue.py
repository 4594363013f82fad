"""kernel/workqueue.c, v5.10: functions that run later, in a worker.

A work item is one cell of the object that it belongs to, as ``work->data`` is::

    class BpfMap(Struct):
        work: Cell[WorkData] = cell(None)

    await schedule_work(kernel, Work(map.work, bpf_map_free_deferred, map))

The cell says that the item is pending, or who ran it last; so an object that is freed while its
item is pending is found out when a worker begins with it.

Not modelled: the number of workers (each item that is queued gets one), delayed and ordered
work, cancelling; that flushing an item that has run already needs no sleep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kernel_model.kernel import Kernel
from kernel_model.linux.task import kthread, might_sleep, sleeping
from sim.cells import Cell
from sim.macros import join, wait_until, xchg
from sim.threads import Body, Thread, current

WORK_STRUCT_PENDING: Final = 1
WorkData = Thread | int | None


class Work(NamedTuple):
    """A work item: its state, and what a worker calls: ``function(kernel, owner)``."""

    data: Cell[WorkData]
    function: Callable[[Kernel, Any], Body]
    owner: Any


async def schedule_work(kernel: Kernel, work: Work) -> bool:
    """Queue the item unless it is pending; whether it was queued."""
    before = await xchg(work.data, WORK_STRUCT_PENDING)
    if before == WORK_STRUCT_PENDING:
        return False
    await kthread(kernel, process_one_work, kernel, work, before, kind="kworker")
    return True


async def process_one_work(kernel: Kernel, work: Work, before: WorkData) -> None:
    """A worker's part: once `before`, which runs the same item, is done, run it."""
    if isinstance(before, Thread):
        async with sleeping("worker_thread"):
            await join(before)
    await xchg(work.data, current())  # sees what those did who found it pending
    await work.function(kernel, work.owner)


async def flush_work(work: Work) -> None:
    """Sleep until the item, if it has been queued, has run."""
    await might_sleep()
    async with sleeping("flush_work"):
        (runner,) = await wait_until(_not_pending, work.data, name="flush_work")
        if runner is not None:
            await join(runner)


def _not_pending(data: WorkData) -> bool:
    return data != WORK_STRUCT_PENDING
