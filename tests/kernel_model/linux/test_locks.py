"""Spinlocks, mutexes and completions."""

from collections.abc import Callable
from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.completion import UINT_MAX, complete, complete_all, wait_for_completion
from kernel_model.linux.mutex import mutex, mutex_trylock, mutex_unlock
from kernel_model.linux.spinlock import spin_lock, spin_lock_bh, spin_lock_irqsave
from kernel_model.linux.task import context, syscall, task
from kernel_model.rcu.tree import synchronize_rcu
from sim.macros import READ_ONCE, WRITE_ONCE, join, load, outcome, store
from sim.threads import spawn
from tests.kernel_model.support import TASKS_RCU, Shared, explore

PREEMPT = pytest.mark.parametrize("preempt", ["none", "full"])
LOCKS = [mutex, spin_lock, spin_lock_irqsave, spin_lock_bh]
SAME_CPU = pytest.mark.parametrize("cpus", [(0, 0), (0, 1)], ids=["same_cpu", "two_cpus"])


@PREEMPT
@SAME_CPU
@pytest.mark.parametrize("guard", LOCKS)
def test_one_at_a_time(guard: Callable[..., Any], cpus: tuple[int, int], preempt: str) -> None:
    async def count(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with guard(shared.a_lock):
                await store(shared.x, await load(shared.x) + 1)

    async def main(kernel: Kernel, shared: Shared) -> None:
        tasks = [
            await task(kernel, count, kernel, shared, name=f"{nth}", cpu=cpu)
            for nth, cpu in enumerate(cpus)
        ]
        for thread in tasks:
            await join(thread)
        await outcome(await load(shared.x))

    explored = explore(main, preempt=preempt)
    assert explored.states == {"done"}
    assert explored.outcomes == {(2,)}
    assert not explored.findings


@PREEMPT
@pytest.mark.parametrize("guard", LOCKS)
def test_taking_ones_own_lock_is_a_deadlock(guard: Callable[..., Any], preempt: str) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with guard(shared.a_lock):
                async with guard(shared.a_lock):
                    pass

    assert explore(main, preempt=preempt).states == {"deadlock"}


@pytest.mark.parametrize("guard", LOCKS)
def test_opposite_orders_can_deadlock(guard: Callable[..., Any]) -> None:
    async def both(kernel: Kernel, first: Any, second: Any) -> None:
        async with syscall(kernel):
            async with guard(first):
                async with guard(second):
                    pass

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, both, kernel, shared.a_lock, shared.b_lock, name="ab")
        await task(kernel, both, kernel, shared.b_lock, shared.a_lock, name="ba")

    assert explore(main).states == {"deadlock", "done"}


@pytest.mark.parametrize(
    ("guard", "irqs", "bh"),
    [(spin_lock, 0, 0), (spin_lock_irqsave, 1, 0), (spin_lock_bh, 0, 1)],
)
def test_what_a_spinlock_turns_off(guard: Callable[..., Any], irqs: int, bh: int) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with guard(shared.a_lock):
                ctx = context()
                await outcome((ctx.preempt_count, ctx.irqs_disabled, ctx.bh_disabled))
            await outcome((ctx.preempt_count, ctx.irqs_disabled, ctx.bh_disabled, len(ctx.locks)))

    assert explore(main).outcomes == {((1, irqs, bh), (0, 0, 0, 0))}


@PREEMPT
def test_a_mutex_may_be_held_across_a_sleep(preempt: str) -> None:
    async def waits(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with mutex(shared.a_lock):
                await WRITE_ONCE(shared.x, 1)
                await synchronize_rcu(kernel)
                await WRITE_ONCE(shared.x, 0)

    async def looks(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with mutex(shared.a_lock):
                await outcome(await READ_ONCE(shared.x))

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, waits, kernel, shared, name="waits", cpu=0)
        await task(kernel, looks, kernel, shared, name="looks", cpu=0)

    explored = explore(main, preempt=preempt, config=TASKS_RCU)
    assert explored.states == {"done"}
    assert explored.outcomes == {(0,)}
    assert not explored.findings


def test_a_free_mutex_needs_no_sleep() -> None:
    """Without preemption a sleep is a quiescent state, so the fast path must not be one."""
    names: list[str] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with mutex(shared.a_lock):
                pass

    explore(main, preempt="none", observer=lambda event: names.append(event.op.name))
    assert "schedule" not in names


def test_trylock() -> None:
    async def tries(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            taken = await mutex_trylock(shared.a_lock)
            await outcome((taken, len(context().locks)))
            if taken:
                await mutex_unlock(shared.a_lock)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, tries, kernel, shared, name="a")
        await task(kernel, tries, kernel, shared, name="b")

    got, missed = (True, 1), (False, 0)
    assert explore(main).outcomes == {(got, got), (got, missed), (missed, got)}


def test_unlocking_anothers_mutex_is_a_fault() -> None:
    faults: list[Any] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await mutex_unlock(shared.a_lock)

    explore(main, observer=lambda event: faults.append(event.fault))
    assert [fault.kind for fault in faults if fault] == ["invalid-unlock"]


# -- completions -----------------------------------------------------------------------------------


async def waiter(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        await wait_for_completion(shared.done)
        await outcome(await READ_ONCE(shared.x))


@PREEMPT
def test_a_waiter_sees_what_was_done(preempt: str) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, waiter, kernel, shared, name="waiter")
        await WRITE_ONCE(shared.x, 1)
        await complete(shared.done)

    explored = explore(main, preempt=preempt)
    assert explored.states == {"done"}
    assert explored.outcomes == {(1,)}


@PREEMPT
def test_complete_lets_one_waiter_go_on(preempt: str) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await spawn(waiter, kernel, shared, name="a")
        await spawn(waiter, kernel, shared, name="b")
        await complete(shared.done)

    explored = explore(main, preempt=preempt)
    assert explored.states == {"deadlock"}
    assert explored.outcomes == {(0,)}


@PREEMPT
def test_complete_all_lets_every_waiter_go_on(preempt: str) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await spawn(waiter, kernel, shared, name="a")
        await complete_all(shared.done)
        await join(await spawn(waiter, kernel, shared, name="b"))
        await outcome(await READ_ONCE(shared.done))

    explored = explore(main, preempt=preempt)
    assert explored.states == {"done"}
    assert explored.outcomes == {(0, 0, UINT_MAX)}


def test_what_is_done_already_needs_no_sleep() -> None:
    names: list[str] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await complete(shared.done)
            await wait_for_completion(shared.done)

    explore(main, preempt="none", observer=lambda event: names.append(event.op.name))
    assert "schedule" not in names
