"""Does a task in this state block a grace period that starts now?

The task enters the state and stays until the grace period is over.  So if the grace period
waits for it, every interleaving ends in a deadlock, and if it does not, none does.
"""

from collections.abc import Callable
from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.mutex import mutex
from kernel_model.linux.preempt import (
    local_bh_disable,
    local_irq_save,
    migrate_disable,
    preempt_disable,
)
from kernel_model.linux.spinlock import spin_lock
from kernel_model.linux.task import sleeping, syscall, task
from kernel_model.rcu.tasks import synchronize_rcu_tasks
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace, synchronize_rcu_tasks_trace
from kernel_model.rcu.tree import rcu_read_lock, synchronize_rcu
from sim.execution import DEADLOCKED, DONE
from sim.macros import store, wait_until
from sim.threads import Body, spawn
from tests.kernel_model.support import TASKS_RCU, Shared, explore

State = Callable[[Kernel, Shared], Body]


async def stay(shared: Shared) -> None:
    await store(shared.x, 1)
    await wait_until(bool, shared.done)


async def user_mode(kernel: Kernel, shared: Shared) -> None:
    await stay(shared)


async def back_in_user_mode(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        async with rcu_read_lock():
            pass
    await stay(shared)


async def no_marker(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        await stay(shared)


async def after_a_reader(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        async with rcu_read_lock():
            pass
        await stay(shared)


def inside(*guards: Callable[[Shared], Any]) -> State:
    async def state(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await nest(shared, list(guards))

    async def nest(shared: Shared, left: list[Callable[[Shared], Any]]) -> None:
        if not left:
            await stay(shared)
            return
        async with left[0](shared):
            await nest(shared, left[1:])

    return state


async def outer_of_two(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        async with rcu_read_lock():
            async with rcu_read_lock():
                pass
            await stay(shared)


async def preempt_off_begun_in_reader(kernel: Kernel, shared: Shared) -> None:
    """rcu_read_lock(); preempt_disable(); rcu_read_unlock(): one section until the last ends."""
    async with syscall(kernel):
        reader, off = rcu_read_lock(), preempt_disable()
        await reader.__aenter__()
        await off.__aenter__()
        await reader.__aexit__(None, None, None)
        await stay(shared)
        await off.__aexit__(None, None, None)


async def blocked(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        async with sleeping("wait"):
            await stay(shared)


async def blocked_in_trace(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        async with rcu_read_lock_trace():
            async with sleeping("wait"):
                await stay(shared)


async def woken(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        async with sleeping("wait"):
            pass
        await stay(shared)


rcu = inside(lambda shared: rcu_read_lock())
trace = inside(lambda shared: rcu_read_lock_trace())
rcu_in_trace = inside(lambda shared: rcu_read_lock_trace(), lambda shared: rcu_read_lock())
preempt_off = inside(lambda shared: preempt_disable())
migrate_off = inside(lambda shared: migrate_disable())
irqs_off = inside(lambda shared: local_irq_save())
bh_off = inside(lambda shared: local_bh_disable())
spinning = inside(lambda shared: spin_lock(shared.a_lock))

# Who waits for it: RCU without preemption, RCU with, Tasks with, Tasks Trace.
STATES: dict[str, tuple[State, bool, bool, bool, bool]] = {
    "user_mode": (user_mode, False, False, False, False),
    "back_in_user_mode": (back_in_user_mode, False, False, False, False),
    "no_marker": (no_marker, True, False, True, False),
    "after_a_reader": (after_a_reader, True, False, True, False),
    "rcu": (rcu, True, True, True, False),
    "outer_of_two": (outer_of_two, True, True, True, False),
    "trace": (trace, True, False, True, True),
    "rcu_in_trace": (rcu_in_trace, True, True, True, True),
    "preempt_off": (preempt_off, True, True, True, False),
    "migrate_off": (migrate_off, True, True, True, False),
    "irqs_off": (irqs_off, True, True, True, False),
    "bh_off": (bh_off, True, True, True, False),
    "spinning": (spinning, True, True, True, False),
    "preempt_off_begun_in_reader": (preempt_off_begun_in_reader, True, True, True, False),
    "blocked": (blocked, False, False, False, False),
    "blocked_in_trace": (blocked_in_trace, False, False, False, True),
    "woken": (woken, True, False, True, False),
}

# While another task runs on its CPU.  Who waits for it: RCU, Tasks, Tasks Trace.
PREEMPTED = {
    "no_marker": (no_marker, False, True, False),
    "rcu": (rcu, True, True, False),
    "trace": (trace, False, True, True),
    "rcu_in_trace": (rcu_in_trace, True, True, True),
}
FLAVOURS = {
    "rcu": synchronize_rcu,
    "tasks": synchronize_rcu_tasks,
    "trace": synchronize_rcu_tasks_trace,
}


def is_waited_for(state: State, wait: Any, *, cpu: int, preempt: str) -> bool:
    """Whether a grace period, asked for on `cpu`, waits for a task in `state` on CPU 0."""

    async def updater(kernel: Kernel, shared: Shared) -> None:
        await wait_until(bool, shared.x)
        async with syscall(kernel):
            await wait(kernel)
        await store(shared.done, 1)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, state, kernel, shared, name="task", cpu=0)
        await task(kernel, updater, kernel, shared, name="updater", cpu=cpu)

    explored = explore(main, preempt=preempt, config=TASKS_RCU)
    assert explored.states in ({DEADLOCKED}, {DONE})
    return explored.states == {DEADLOCKED}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", STATES)
def test_without_preemption(name: str, flavour: str) -> None:
    state, rcu_waits, *_, trace_waits = STATES[name]
    expected = trace_waits if flavour == "trace" else rcu_waits  # Tasks RCU is RCU

    assert expected == is_waited_for(state, FLAVOURS[flavour], cpu=1, preempt="none")


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", STATES)
def test_with_preemption(name: str, flavour: str) -> None:
    state, _, *waits = STATES[name]
    expected = dict(zip(FLAVOURS, waits, strict=True))[flavour]

    assert expected == is_waited_for(state, FLAVOURS[flavour], cpu=1, preempt="full")


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", PREEMPTED)
def test_preempted(name: str, flavour: str) -> None:
    state, *waits = PREEMPTED[name]
    expected = dict(zip(FLAVOURS, waits, strict=True))[flavour]

    assert expected == is_waited_for(state, FLAVOURS[flavour], cpu=0, preempt="full")


@pytest.mark.parametrize("name", PREEMPTED)
def test_preemption_is_impossible_without_it(name: str) -> None:
    """The updater cannot even begin on a CPU on which a task is in the kernel."""
    state, *_ = PREEMPTED[name]

    async def no_wait(kernel: Kernel) -> None:
        pass

    assert is_waited_for(state, no_wait, cpu=0, preempt="none")


def test_blocked_in_a_reader_is_a_bug() -> None:
    """Without preemption nobody waits for the reader; with it, its task is still waited for."""

    async def blocked(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                async with sleeping("wait"):
                    await stay(shared)

    assert not is_waited_for(blocked, synchronize_rcu, cpu=1, preempt="none")
    assert is_waited_for(blocked, synchronize_rcu, cpu=1, preempt="full")


@pytest.mark.parametrize(
    ("preempt", "flavour"), [("none", "rcu"), ("full", "rcu"), ("full", "tasks")]
)
def test_blocked_on_a_mutex(preempt: str, flavour: str) -> None:
    """Nobody waits for a task that waits for the mutex of who waits for the grace period."""

    async def blocked(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await store(shared.x, 1)
            async with mutex(shared.a_lock):
                pass

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with mutex(shared.a_lock):
                await spawn(blocked, kernel, shared, name="blocked")
                async with sleeping("wait"):
                    await wait_until(bool, shared.x)
                await FLAVOURS[flavour](kernel)

    assert explore(main, preempt=preempt, config=TASKS_RCU).states == {DONE}


def test_preemption_is_impossible_where_it_is_off() -> None:
    async def no_wait(kernel: Kernel) -> None:
        pass

    assert is_waited_for(preempt_off, no_wait, cpu=0, preempt="full")
    assert not is_waited_for(no_marker, no_wait, cpu=0, preempt="full")
