"""What the primitives order: plain accesses race, and frees come too early, only where they do.

The detectors judge by synchronisation, not by luck: one that is missing is noticed in every
interleaving, so these programs need hardly more than one.
"""

from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.completion import complete, wait_for_completion
from kernel_model.linux.mutex import mutex
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.spinlock import spin_lock
from kernel_model.linux.task import kthread, syscall, task
from kernel_model.linux.workqueue import Work, WorkData, flush_work, schedule_work
from kernel_model.rcu.tasks_trace import (
    call_rcu_tasks_trace,
    rcu_read_lock_trace,
    synchronize_rcu_tasks_trace,
)
from kernel_model.rcu.tree import (
    call_rcu,
    rcu_assign_pointer,
    rcu_barrier,
    rcu_dereference_raw,
    rcu_read_lock,
    synchronize_rcu,
)
from sim.cells import Cell, Struct, cell
from sim.macros import WRITE_ONCE, load, store
from tests.kernel_model.support import Explored, Shared, explore

RIGHT = pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
RACE = {"BUG: KCSAN: data-race in add / add"}


class Node(Struct):
    KIND = "node"
    value: Cell[int] = cell(0)
    work: Cell[WorkData] = cell(None)


async def add(shared: Shared) -> None:
    await store(shared.x, await load(shared.x) + 1)


def sanitized(main: Any, **options: Any) -> Explored:
    explored = explore(main, sanitize=True, **options)
    assert explored.states == {"done"}
    return explored


@RIGHT
def test_locks(right: bool) -> None:
    async def counts(kernel: Kernel, shared: Shared, guard: Any) -> None:
        async with syscall(kernel):
            async with guard:
                await add(shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        other = shared.a_lock if right else shared.b_lock
        await task(kernel, counts, kernel, shared, mutex(shared.a_lock), name="a")
        await task(kernel, counts, kernel, shared, mutex(other), name="b")

    assert sanitized(main).titles == (set() if right else RACE)


@RIGHT
def test_completions(right: bool) -> None:
    async def waiter(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await wait_for_completion(shared.done)
            await add(shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, waiter, kernel, shared, name="waiter")
        if right:
            await add(shared)
        await complete(shared.done)
        if not right:
            await add(shared)

    assert sanitized(main).titles == (set() if right else RACE)


@RIGHT
def test_work(right: bool) -> None:
    async def adds(kernel: Kernel, shared: Shared) -> None:
        await add(shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        work = Work(kernel.memory.static(Node).work, adds, shared)
        async with syscall(kernel):
            await add(shared)
            await schedule_work(kernel, work)
            if right:
                await flush_work(work)
            await add(shared)

    assert sanitized(main).titles == (set() if right else RACE)


@RIGHT
@pytest.mark.parametrize("preempt", ["none", "full"])
def test_grace_periods(right: bool, preempt: str) -> None:
    """What a reader did before the grace period is ordered before what follows it."""

    async def reader(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                if not await rcu_dereference_raw(shared.p):
                    await add(shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, reader, kernel, shared, name="reader")
        async with syscall(kernel):
            await rcu_assign_pointer(shared.p, 1)
            if right:
                await synchronize_rcu(kernel)
            else:
                await synchronize_rcu_tasks_trace(kernel)
            await add(shared)

    assert sanitized(main, preempt=preempt).titles == (set() if right else RACE)


@RIGHT
def test_callbacks_of_one_queue(right: bool) -> None:
    async def callback(shared: Shared) -> None:
        await add(shared)

    async def queue(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await call_rcu(kernel, callback, shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, queue, kernel, shared, name="a", cpu=0)
        await task(kernel, queue, kernel, shared, name="b", cpu=0 if right else 1)

    assert sanitized(main).titles == (set() if right else RACE)


@RIGHT
def test_barriers(right: bool) -> None:
    async def callback(shared: Shared) -> None:
        await add(shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await call_rcu(kernel, callback, shared)
            await (rcu_barrier(kernel) if right else synchronize_rcu(kernel))
            await add(shared)

    assert sanitized(main).titles == (set() if right else RACE)


@RIGHT
@pytest.mark.parametrize("call", [False, True], ids=["synchronize", "call"])
def test_freeing_after_a_grace_period(call: bool, right: bool) -> None:
    """A node that a trace reader may still see is freed after a grace period, of some flavour."""

    async def reader(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock_trace():
                node = await rcu_dereference_raw(shared.p)
                if node is not None:
                    await load(node.value)

    async def retire(kernel: Kernel, node: Node) -> None:
        await kfree(kernel, node)

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            node = await kzalloc(kernel, Node)
            await rcu_assign_pointer(shared.p, node)
            await task(kernel, reader, kernel, shared, name="reader")
            await WRITE_ONCE(shared.p, None)
            if call:
                later = call_rcu_tasks_trace if right else call_rcu
                await later(kernel, retire, kernel, node)
            else:
                await (synchronize_rcu_tasks_trace if right else synchronize_rcu)(kernel)
                await kfree(kernel, node)

    explored = explore(main, sanitize=True)
    kinds = {finding.kind for finding in explored.findings}
    assert kinds == (set() if right else {"use-after-free"})
    assert bool(explored.predicted) == (not right)


def test_a_kernel_thread_sees_what_its_parent_did() -> None:
    async def adds(shared: Shared) -> None:
        async with spin_lock(shared.a_lock):
            await add(shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await add(shared)
        await kthread(kernel, adds, shared)

    assert not sanitized(main).titles
