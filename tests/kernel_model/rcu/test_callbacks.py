"""Callbacks, barriers, and waiting for several flavours."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.task import context, syscall, task
from kernel_model.rcu.sync import synchronize_rcu_mult
from kernel_model.rcu.tasks import call_rcu_tasks, rcu_barrier_tasks, synchronize_rcu_tasks
from kernel_model.rcu.tasks_trace import (
    call_rcu_tasks_trace,
    rcu_barrier_tasks_trace,
    rcu_read_lock_trace,
)
from kernel_model.rcu.tree import call_rcu, rcu_barrier, rcu_read_lock, synchronize_rcu
from sim.errors import MisuseError
from sim.macros import READ_ONCE, WRITE_ONCE, atomic_fetch_add, join, outcome, wait_until
from tests.kernel_model.support import TASKS_RCU, Explored, Shared, explore

ANY = {(0, 0), (0, 1), (1, 0), (1, 1)}
PROTECTED = ANY - {(0, 1)}

Guards = dict[str, Callable[[], Any]]
READERS: Guards = {"rcu": rcu_read_lock, "trace": rcu_read_lock_trace}
CALLS: dict[str, Any] = {
    "rcu": call_rcu,
    "tasks": call_rcu_tasks,
    "trace": call_rcu_tasks_trace,
}
BARRIERS: dict[str, Any] = {
    "rcu": rcu_barrier,
    "tasks": rcu_barrier_tasks,
    "trace": rcu_barrier_tasks_trace,
}
PREEMPT = pytest.mark.parametrize("preempt", ["none", "full"])
FLAVOUR = pytest.mark.parametrize("flavour", ["rcu", "tasks", "trace"])


async def write(kernel: Kernel, shared: Shared) -> None:
    await WRITE_ONCE(shared.y, 1)


async def read_both(kernel: Kernel, shared: Shared) -> None:
    await outcome((await READ_ONCE(shared.x), await READ_ONCE(shared.y)))


def against_a_reader(
    update: Callable[[Kernel, Shared], Awaitable[None]], reader: str, preempt: str
) -> set[Any]:
    """What a reader of (x, y) sees while `update` runs."""

    async def reads(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            if reader in READERS:
                async with READERS[reader]():
                    await read_both(kernel, shared)
            else:
                await read_both(kernel, shared)

    async def updates(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await update(kernel, shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, reads, kernel, shared, name="reader", cpu=0)
        await task(kernel, updates, kernel, shared, name="updater", cpu=1)

    explored = explore(main, preempt=preempt, config=TASKS_RCU)
    assert explored.states == {"done"}
    assert not explored.findings
    return {said for (said,) in explored.outcomes}


@PREEMPT
@FLAVOUR
def test_a_callback_comes_after_a_grace_period(flavour: str, preempt: str) -> None:
    async def update(kernel: Kernel, shared: Shared) -> None:
        await WRITE_ONCE(shared.x, 1)
        await CALLS[flavour](kernel, write, kernel, shared)

    assert against_a_reader(update, flavour, preempt) == PROTECTED


def test_a_callback_of_another_flavour_does_not_wait() -> None:
    async def update(kernel: Kernel, shared: Shared) -> None:
        await WRITE_ONCE(shared.x, 1)
        await call_rcu(kernel, write, kernel, shared)

    assert against_a_reader(update, "trace", "full") == ANY


@PREEMPT
def test_rcu_barrier_is_no_grace_period(preempt: str) -> None:
    async def update(kernel: Kernel, shared: Shared) -> None:
        await WRITE_ONCE(shared.x, 1)
        await rcu_barrier(kernel)
        await WRITE_ONCE(shared.y, 1)

    assert against_a_reader(update, "rcu", preempt) == ANY


@pytest.mark.parametrize("flavour", ["tasks", "trace"])
def test_other_barriers_are_grace_periods(flavour: str) -> None:
    async def update(kernel: Kernel, shared: Shared) -> None:
        await WRITE_ONCE(shared.x, 1)
        await BARRIERS[flavour](kernel)
        await WRITE_ONCE(shared.y, 1)

    assert against_a_reader(update, flavour, "full") == PROTECTED


@PREEMPT
@FLAVOUR
def test_a_barrier_waits_for_callbacks_queued_before(flavour: str, preempt: str) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await CALLS[flavour](kernel, write, kernel, shared)
            await BARRIERS[flavour](kernel)
            await outcome(await READ_ONCE(shared.y))

    assert explore(main, preempt=preempt, config=TASKS_RCU).outcomes == {(1,)}


def test_a_barrier_waits_for_its_own_flavour_only() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await call_rcu_tasks_trace(kernel, write, kernel, shared)
            await rcu_barrier(kernel)
            await outcome(await READ_ONCE(shared.y))

    assert explore(main).outcomes == {(0,), (1,)}


def order_of_callbacks(flavour: str, preempt: str, *, cpus: tuple[int, int]) -> Explored:
    """Two tasks, one after the other, queue a callback each; what did x count up to in each?"""

    async def callback(shared: Shared, name: str) -> None:
        await outcome((name, await atomic_fetch_add(shared.x, 1)))

    async def queue(kernel: Kernel, shared: Shared, name: str) -> None:
        async with syscall(kernel):
            await CALLS[flavour](kernel, callback, shared, name)

    async def main(kernel: Kernel, shared: Shared) -> None:
        for name, cpu in zip("ab", cpus, strict=True):
            await join(await task(kernel, queue, kernel, shared, name, name=name, cpu=cpu))

    return explore(main, preempt=preempt, config=TASKS_RCU)


IN_ORDER = {(("a", 0), ("b", 1))}
IN_ANY_ORDER = {(("a", 0), ("b", 1)), (("a", 1), ("b", 0))}


@PREEMPT
@FLAVOUR
def test_callbacks_of_a_cpu_run_in_order(flavour: str, preempt: str) -> None:
    assert order_of_callbacks(flavour, preempt, cpus=(0, 0)).outcomes == IN_ORDER


def test_callbacks_of_two_cpus_run_in_any_order() -> None:
    assert order_of_callbacks("rcu", "full", cpus=(0, 1)).outcomes == IN_ANY_ORDER


def test_callbacks_of_a_thread_that_shares_no_cpu_run_in_any_order() -> None:
    async def callback(shared: Shared, name: str) -> None:
        await outcome((name, await atomic_fetch_add(shared.x, 1)))

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            for name in "ab":
                await call_rcu(kernel, callback, shared, name)

    assert explore(main).outcomes == IN_ANY_ORDER


@pytest.mark.parametrize("flavour", ["tasks", "trace"])
def test_callbacks_of_one_kthread_run_in_order(flavour: str) -> None:
    assert order_of_callbacks(flavour, "full", cpus=(0, 1)).outcomes == IN_ORDER


def test_callbacks_of_one_queue_never_overlap() -> None:
    async def callback(shared: Shared) -> None:
        inside = await atomic_fetch_add(shared.x, 1)
        await atomic_fetch_add(shared.x, -1)
        await outcome(inside)

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            for _ in range(2):
                await call_rcu_tasks_trace(kernel, callback, shared)

    assert explore(main).outcomes == {(0, 0)}


@FLAVOUR
def test_a_callback_runs_with_bottom_halves_off(flavour: str) -> None:
    async def callback() -> None:
        ctx = context()
        await outcome((ctx.kind, ctx.atomic, ctx.bh_disabled > 0))

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await CALLS[flavour](kernel, callback)

    kind = "softirq" if flavour == "rcu" else "kthread"
    assert explore(main, config=TASKS_RCU).outcomes == {((kind, True, True),)}


def test_tasks_rcu_does_not_wait_for_callbacks() -> None:
    async def callback(shared: Shared) -> None:
        await wait_until(bool, shared.done)

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await call_rcu_tasks_trace(kernel, callback, shared)
            await synchronize_rcu_tasks(kernel)
            await WRITE_ONCE(shared.done, 1)

    assert explore(main, config=TASKS_RCU).states == {"done"}


def test_a_callback_is_a_reader() -> None:
    async def callback(kernel: Kernel, shared: Shared) -> None:
        await read_both(kernel, shared)

    async def updates(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await WRITE_ONCE(shared.x, 1)
            await synchronize_rcu(kernel)
            await WRITE_ONCE(shared.y, 1)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, updates, kernel, shared, name="updater", cpu=1)
        async with syscall(kernel):
            await call_rcu(kernel, callback, kernel, shared)

    assert {said for (said,) in explore(main).outcomes} == PROTECTED


# -- several flavours ------------------------------------------------------------------------------


@PREEMPT
@FLAVOUR
def test_mult_waits_for_each_flavour(flavour: str, preempt: str) -> None:
    async def update(kernel: Kernel, shared: Shared) -> None:
        await WRITE_ONCE(shared.x, 1)
        await synchronize_rcu_mult(kernel, call_rcu, call_rcu_tasks, call_rcu_tasks_trace)
        await WRITE_ONCE(shared.y, 1)

    assert against_a_reader(update, flavour, preempt) == PROTECTED


@pytest.mark.parametrize("reader", ["rcu", "tasks"])
def test_mult_waits_for_no_other_flavour(reader: str) -> None:
    async def update(kernel: Kernel, shared: Shared) -> None:
        await WRITE_ONCE(shared.x, 1)
        await synchronize_rcu_mult(kernel, call_rcu_tasks_trace)
        await WRITE_ONCE(shared.y, 1)

    assert against_a_reader(update, reader, "full") == ANY


def test_mult_does_not_cover_a_chain_of_readers() -> None:
    """A reader of one flavour, then of another one begun too late, is not waited for."""

    async def chain(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                x = await READ_ONCE(shared.x)
            async with rcu_read_lock_trace():
                await outcome((x, await READ_ONCE(shared.y)))

    async def updates(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await WRITE_ONCE(shared.x, 1)
            await synchronize_rcu_mult(kernel, call_rcu, call_rcu_tasks_trace)
            await WRITE_ONCE(shared.y, 1)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, chain, kernel, shared, name="chain", cpu=0)
        await task(kernel, updates, kernel, shared, name="updater", cpu=1)

    assert {said for (said,) in explore(main).outcomes} == ANY


def test_mult_runs_its_grace_periods_side_by_side() -> None:
    started: list[str] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await synchronize_rcu_mult(kernel, call_rcu, call_rcu, call_rcu_tasks_trace)

    explore(main, observer=lambda event: started.append(repr(event.op).split()[0]))
    assert [kind for kind in started if kind.startswith("<GP")] == [
        "<GP_START",
        "<GP_START",
        "<GP_END",
        "<GP_END",
    ]


# -- configuration ---------------------------------------------------------------------------------


def test_tasks_rcu_has_to_be_configured() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await synchronize_rcu_tasks(kernel)

    with pytest.raises(MisuseError, match=r'config=frozenset\(\{"TASKS_RCU"\}\)'):
        explore(main)
    assert explore(main, preempt="none").states == {"done"}


def test_mult_takes_call_functions_only() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await synchronize_rcu_mult(kernel, synchronize_rcu)

    with pytest.raises(MisuseError, match="synchronize_rcu_mult"):
        explore(main)


def on_one_cpu(preempt: str) -> Explored:
    """A reader, and a callback that is one, against an updater on the same CPU."""

    async def update(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await WRITE_ONCE(shared.x, 1)
            await synchronize_rcu(kernel)
            await WRITE_ONCE(shared.y, 1)

    async def reads(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await call_rcu(kernel, read_both, kernel, shared)
            async with rcu_read_lock():
                await read_both(kernel, shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, update, kernel, shared, name="updater")
        await task(kernel, reads, kernel, shared, name="reader")

    return explore(main, preempt=preempt, cpus=1)


def test_one_cpu_without_preemption_has_nobody_to_wait_for() -> None:
    explored = on_one_cpu("none")
    assert {pair for said in explored.outcomes for pair in said} == {(0, 0), (1, 1)}


def test_one_cpu_with_preemption_has() -> None:
    explored = on_one_cpu("full")
    assert {pair for said in explored.outcomes for pair in said} == PROTECTED
