"""Deferred work: pending, running, flushed, and on a freed object."""

from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.task import context, syscall, task
from kernel_model.linux.workqueue import Work, WorkData, flush_work, schedule_work
from sim.cells import Cell, Struct, cell
from sim.macros import READ_ONCE, WRITE_ONCE, atomic_fetch_add, outcome
from sim.threads import current
from tests.kernel_model.support import Shared, explore

PREEMPT = pytest.mark.parametrize("preempt", ["none", "full"])


class Owner(Struct):
    KIND = "owner"
    work: Cell[WorkData] = cell(None)
    runs: Cell[int] = cell(0)
    inside: Cell[int] = cell(0)


async def run(kernel: Kernel, owner: Owner) -> None:
    overlapping = await atomic_fetch_add(owner.inside, 1)
    await atomic_fetch_add(owner.runs, 1)
    await atomic_fetch_add(owner.inside, -1)
    if overlapping:
        await outcome("two runs of one item overlap")


async def free_owner(kernel: Kernel, owner: Owner) -> None:
    await kfree(kernel, owner)


async def new_owner(kernel: Kernel) -> Owner:
    owner = await kzalloc(kernel, Owner)
    assert owner is not None
    return owner


@PREEMPT
def test_flush_waits_for_the_run(preempt: str) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
            work = Work(owner.work, run, owner)
            assert await schedule_work(kernel, work)
            await flush_work(work)
            await outcome(await READ_ONCE(owner.runs))

    explored = explore(main, preempt=preempt)
    assert explored.states == {"done"}
    assert explored.outcomes == {(1,)}


def test_without_flush_the_run_comes_any_time() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
            await schedule_work(kernel, Work(owner.work, run, owner))
            await outcome(await READ_ONCE(owner.runs))

    assert explore(main).outcomes == {(0,), (1,)}


def test_flushing_what_was_never_queued() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
            await flush_work(Work(owner.work, run, owner))

    assert explore(main).states == {"done"}


def test_a_pending_item_is_queued_only_once() -> None:
    """Queued again while it is pending, it runs once; while it runs, again, and never overlaps."""

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
            work = Work(owner.work, run, owner)
            queued = await schedule_work(kernel, work) + await schedule_work(kernel, work)
            await flush_work(work)
            await outcome((queued, await READ_ONCE(owner.runs)))

    assert explore(main).outcomes == {((1, 1),), ((2, 2),)}


def test_two_tasks_queue_one_item() -> None:
    async def queue(kernel: Kernel, work: Work) -> None:
        async with syscall(kernel):
            await outcome(await schedule_work(kernel, work))

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
        work = Work(owner.work, run, owner)
        await task(kernel, queue, kernel, work, name="a")
        await task(kernel, queue, kernel, work, name="b")

    assert explore(main).outcomes == {(True, True), (True, False), (False, True)}


def test_a_worker_is_a_kernel_thread_named_after_its_queuer() -> None:
    async def look(kernel: Kernel, owner: Owner) -> None:
        await outcome((current().name, context().kind, context().atomic))

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
            await schedule_work(kernel, Work(owner.work, look, owner))

    assert explore(main).outcomes == {(("kworker/main-0", "kworker", False),)}


def faults(free_in_work: bool) -> set[str]:
    seen: list[Any] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
            function = free_owner if free_in_work else run
            await schedule_work(kernel, Work(owner.work, function, owner))
            if not free_in_work:
                await kfree(kernel, owner)

    explore(main, observer=lambda event: seen.append(event.fault))
    return {fault.kind for fault in seen if fault}


def test_freeing_the_owner_of_pending_work_is_noticed() -> None:
    assert faults(free_in_work=False) == {"use-after-free"}


def test_work_may_free_its_owner() -> None:
    assert faults(free_in_work=True) == set()


def test_what_was_written_before_queueing_is_seen_by_the_work() -> None:
    async def look(kernel: Kernel, shared: Shared) -> None:
        await outcome(await READ_ONCE(shared.x))

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            owner = await new_owner(kernel)
            await WRITE_ONCE(shared.x, 1)
            await schedule_work(kernel, Work(owner.work, look, shared))

    assert explore(main).outcomes == {(1,)}
