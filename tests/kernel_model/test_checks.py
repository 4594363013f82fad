"""Every check warns of the wrong program, and is silent about the right one next to it."""

from collections.abc import Callable
from typing import Any

import pytest

from kernel_model import checks
from kernel_model.kernel import Kernel
from kernel_model.linux.mutex import mutex, mutex_lock, mutex_trylock, mutex_unlock
from kernel_model.linux.preempt import local_bh_disable, local_irq_save, preempt_disable
from kernel_model.linux.spinlock import spin_lock, spin_lock_bh
from kernel_model.linux.task import (
    cond_resched,
    kthread,
    might_fault,
    might_sleep,
    sleeping,
    syscall,
    task,
)
from kernel_model.rcu.sync import synchronize_rcu_mult
from kernel_model.rcu.tasks_trace import (
    call_rcu_tasks_trace,
    rcu_barrier_tasks_trace,
    rcu_read_lock_trace,
    synchronize_rcu_tasks_trace,
)
from kernel_model.rcu.tree import (
    call_rcu,
    rcu_barrier,
    rcu_dereference,
    rcu_dereference_raw,
    rcu_read_lock,
    synchronize_rcu,
)
from sim.clock import sleep
from sim.events import Finding
from sim.macros import READ_ONCE, WRITE_ONCE, join, note
from tests.kernel_model.support import Shared, explore

Code = Callable[[Kernel, Shared], Any]


def found(code: Code, preempt: str = "full", **options: Any) -> list[Finding]:
    """What the checks find when a task runs the code in one system call."""

    async def run(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await code(kernel, shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, run, kernel, shared, name="t", cpu=0)

    return explore(main, preempt=preempt, **options).findings


def titles(code: Code, preempt: str = "full", **options: Any) -> set[str]:
    return {finding.title for finding in found(code, preempt, **options)}


async def nothing(*args: Any) -> None:
    pass


# -- rcu_dereference() -----------------------------------------------------------------------------


def dereference(guard: Any, *also: str) -> Code:
    async def reads_p(kernel: Kernel, shared: Shared) -> None:
        if guard is None:
            await rcu_dereference(shared.p, *also)
        else:
            async with guard():
                await rcu_dereference(shared.p, *also)

    return reads_p


OUTSIDE = "WARNING: suspicious RCU usage: suspicious rcu_dereference() usage in reads_p"


@pytest.mark.parametrize("preempt", ["none", "full"])
@pytest.mark.parametrize(
    ("guard", "also", "right"),
    [
        (None, (), False),
        (rcu_read_lock, (), True),
        (preempt_disable, (), False),
        (preempt_disable, ("rcu_sched",), True),
        (local_irq_save, ("rcu_sched",), True),
        (preempt_disable, ("rcu_bh",), False),
        (local_bh_disable, ("rcu_bh",), True),
        (local_irq_save, ("rcu_bh",), True),
        (rcu_read_lock_trace, (), False),
        (rcu_read_lock_trace, ("rcu_tasks_trace",), True),
        (rcu_read_lock, ("rcu_tasks_trace",), True),
        (None, ("rcu_sched", "rcu_bh", "rcu_tasks_trace"), False),
    ],
)
def test_dereference(guard: Any, also: tuple[str, ...], right: bool, preempt: str) -> None:
    assert titles(dereference(guard, *also), preempt) == (set() if right else {OUTSIDE})


def test_raw_dereference_and_other_loads_are_not_checked() -> None:
    async def code(kernel: Kernel, shared: Shared) -> None:
        await rcu_dereference_raw(shared.p)
        await READ_ONCE(shared.p)

    assert not titles(code)


def test_dereference_by_a_thread_that_is_in_no_kernel() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await rcu_dereference(shared.p)

    (finding,) = explore(main).findings
    assert finding.title.endswith("usage in main")


def test_a_report_reads_like_the_kernels() -> None:
    (finding,) = found(dereference(preempt_disable))
    assert (finding.kind, finding.threads, finding.fatal) == ("suspicious-rcu-usage", ("t",), False)
    assert [(detail.heading, detail.lines) for detail in finding.details] == [
        ("shared.0.p may be read inside a reader of rcu", ()),
        ("1 lock held by t:", (" #0: preempt_disable",)),
        ("Call Trace:", (" reads_p", " run")),
    ]


def test_a_thing_is_said_once() -> None:
    async def code(kernel: Kernel, shared: Shared) -> None:
        for _ in range(3):
            await rcu_dereference(shared.p)

    assert len(found(code)) == 1


# -- waiting for a flavour inside its own reader ---------------------------------------------------


def waits(guard: Any, wait: Any, *args: Any) -> Code:
    async def code(kernel: Kernel, shared: Shared) -> None:
        async with guard():
            await wait(kernel, *args)

    return code


IN_RCU = "WARNING: suspicious RCU usage: Illegal {}() in RCU read-side critical section"
IN_TRACE = (
    "WARNING: suspicious RCU usage: Illegal {}() in RCU Tasks Trace read-side critical section"
)


@pytest.mark.parametrize("preempt", ["none", "full"])
@pytest.mark.parametrize(
    ("guard", "wait", "args", "title"),
    [
        (rcu_read_lock, synchronize_rcu, (), IN_RCU.format("synchronize_rcu")),
        (rcu_read_lock, synchronize_rcu_mult, (call_rcu,), IN_RCU.format("synchronize_rcu_mult")),
        (
            rcu_read_lock_trace,
            synchronize_rcu_tasks_trace,
            (),
            IN_TRACE.format("synchronize_rcu_tasks_trace"),
        ),
        (
            rcu_read_lock_trace,
            rcu_barrier_tasks_trace,
            (),
            IN_TRACE.format("rcu_barrier_tasks_trace"),
        ),
        (rcu_read_lock_trace, synchronize_rcu, (), ""),
        (rcu_read_lock_trace, rcu_barrier, (), ""),
        (rcu_read_lock_trace, call_rcu_tasks_trace, (nothing,), ""),
        (rcu_read_lock, call_rcu, (nothing,), ""),
    ],
)
def test_waiting_in_a_reader(guard: Any, wait: Any, args: Any, title: str, preempt: str) -> None:
    found = titles(waits(guard, wait, *args), preempt)
    illegal = {said for said in found if f"Illegal {wait.__name__}()" in said}
    assert illegal == ({title} if title else set())


# -- sleeping --------------------------------------------------------------------------------------


async def takes_mutex(kernel: Kernel, shared: Shared) -> None:
    async with mutex(shared.a_lock):
        pass


async def naps(kernel: Kernel, shared: Shared) -> None:
    async with sleeping("nap"):
        pass


async def faults(kernel: Kernel, shared: Shared) -> None:
    await might_fault()


async def reschedules(kernel: Kernel, shared: Shared) -> None:
    await cond_resched()


INVALID = "BUG: sleeping function called from invalid context at {}"
SWITCH = (
    "WARNING: suspicious RCU usage: Illegal context switch in RCU read-side critical section at {}"
)
ATOMIC: list[Any] = [
    lambda shared: preempt_disable(),
    lambda shared: local_irq_save(),
    lambda shared: local_bh_disable(),
    lambda shared: spin_lock(shared.b_lock),
    lambda shared: spin_lock_bh(shared.b_lock),
]


def inside(guard: Any, body: Code) -> Code:
    async def code(kernel: Kernel, shared: Shared) -> None:
        async with guard(shared):
            await body(kernel, shared)

    return code


@pytest.mark.parametrize("preempt", ["none", "full"])
@pytest.mark.parametrize("guard", ATOMIC)
def test_sleeping_in_atomic(guard: Any, preempt: str) -> None:
    assert INVALID.format("mutex_lock in takes_mutex") in titles(
        inside(guard, takes_mutex), preempt
    )
    assert titles(inside(guard, faults), preempt) == {INVALID.format("faults in code")}
    assert titles(inside(guard, naps), preempt) == {"BUG: scheduling while atomic at naps in code"}
    assert INVALID.format("cond_resched in reschedules") in titles(
        inside(guard, reschedules), preempt
    )


def test_sleeping_in_a_reader() -> None:
    guard = inside(lambda shared: rcu_read_lock(), takes_mutex)
    assert titles(guard) == {INVALID.format("mutex_lock in takes_mutex")}
    assert titles(guard, "none") == {SWITCH.format("mutex_lock in takes_mutex")}

    guard = inside(lambda shared: rcu_read_lock(), naps)
    assert titles(guard) == {
        "WARNING: Voluntary context switch within RCU read-side critical section at naps in code"
    }
    assert titles(guard, "none") == {SWITCH.format("naps in code")}


@pytest.mark.parametrize("preempt", ["none", "full"])
@pytest.mark.parametrize("body", [takes_mutex, naps, faults, reschedules])
def test_sleeping_where_it_is_allowed(body: Code, preempt: str) -> None:
    assert not titles(body, preempt)
    assert not titles(inside(lambda shared: rcu_read_lock_trace(), body), preempt)
    assert not titles(inside(lambda shared: mutex(shared.b_lock), body), preempt)


@pytest.mark.parametrize("preempt", ["none", "full"])
def test_waiting_for_a_grace_period_in_atomic(preempt: str) -> None:
    async def waits(kernel: Kernel, shared: Shared) -> None:
        await synchronize_rcu(kernel)

    assert INVALID.format("__wait_rcu_gp in synchronize_rcu") in titles(
        inside(lambda shared: preempt_disable(), waits), preempt
    )


def test_a_callback_must_not_sleep() -> None:
    async def callback(kernel: Kernel, shared: Shared) -> None:
        await takes_mutex(kernel, shared)

    async def code(kernel: Kernel, shared: Shared) -> None:
        await call_rcu(kernel, callback, kernel, shared)
        await call_rcu_tasks_trace(kernel, callback, kernel, shared)

    assert titles(code) >= {INVALID.format("mutex_lock in takes_mutex")}


def test_a_worker_may_sleep() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await kthread(kernel, takes_mutex, kernel, shared, kind="kworker")
        await kthread(kernel, takes_mutex, kernel, shared)

    assert not explore(main).findings


def test_the_context_of_a_sleep_in_user_mode_is_fine() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await might_sleep()

    assert not explore(main).findings


# -- leaving the kernel ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guard", "name"),
    [
        (rcu_read_lock, "rcu_read_lock"),
        (rcu_read_lock_trace, "rcu_read_lock_trace"),
        (preempt_disable, "preempt_disable"),
        (local_irq_save, "local_irq_save"),
        (local_bh_disable, "local_bh_disable"),
    ],
)
def test_leaving_with_a_region_open(guard: Any, name: str) -> None:
    async def code(kernel: Kernel, shared: Shared) -> None:
        await guard().__aenter__()

    assert titles(code) == {f"WARNING: lock held when leaving the kernel: {name}"}


def test_leaving_with_a_lock() -> None:
    async def code(kernel: Kernel, shared: Shared) -> None:
        await mutex_lock(shared.a_lock)
        await mutex_lock(shared.b_lock)
        await mutex_unlock(shared.a_lock)

    assert titles(code) == {"WARNING: lock held when leaving the kernel: shared.b_lock"}


def test_a_worker_that_keeps_a_lock() -> None:
    async def work(shared: Shared) -> None:
        await mutex_lock(shared.a_lock)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await kthread(kernel, work, shared, kind="kworker")

    assert explore(main).titles == {"BUG: workqueue leaked lock or atomic: shared.a_lock"}


# -- the order of locks ----------------------------------------------------------------------------


def taken(*orders: str) -> set[str]:
    """Take locks a and b in these orders, one system call after the other: no deadlock yet."""

    async def main(kernel: Kernel, shared: Shared) -> None:
        places = {"a": shared.a_lock, "b": shared.b_lock}
        for order in orders:
            async with syscall(kernel):
                for name in order:
                    await mutex_lock(places[name])
                for name in order:
                    await mutex_unlock(places[name])

    return explore(main).titles


def test_one_order_of_locks() -> None:
    assert not taken("ab", "ab", "a", "b")


def test_two_orders_of_locks() -> None:
    circular = "WARNING: possible circular locking dependency detected:"
    assert taken("ab", "ba") == {f"{circular} shared.a_lock -> shared.b_lock -> shared.a_lock"}


def test_a_trylock_waits_for_nobody() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with mutex(shared.a_lock):
                async with mutex(shared.b_lock):
                    pass
            async with mutex(shared.b_lock):
                await mutex_trylock(shared.a_lock)
                await mutex_unlock(shared.a_lock)

    assert not explore(main).findings


def test_two_locks_of_a_class() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        other = kernel.memory.static(Shared)
        async with syscall(kernel):
            async with mutex(shared.a_lock):
                async with spin_lock(other.a_lock):
                    pass

    assert explore(main).titles == {"WARNING: possible recursive locking detected: shared.a_lock"}


def test_a_circle_of_three() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        class Third(Shared):
            KIND = "third"

        c_lock = kernel.memory.static(Third).a_lock
        async with syscall(kernel):
            for first, second in (
                (shared.a_lock, shared.b_lock),
                (shared.b_lock, c_lock),
                (c_lock, shared.a_lock),
            ):
                async with mutex(first):
                    async with mutex(second):
                        pass

    (finding,) = explore(main).findings
    assert finding.title.endswith(
        "detected: shared.a_lock -> shared.b_lock -> third.a_lock -> shared.a_lock"
    )
    assert finding.details[0].lines == (
        " shared.a_lock -> shared.b_lock: main in main",
        " shared.b_lock -> third.a_lock: main in main",
        " third.a_lock -> shared.a_lock: main in main",
    )


# -- stalls ----------------------------------------------------------------------------------------


def stalls(reads: Code, preempt: str = "full") -> set[str]:
    async def reader(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                await WRITE_ONCE(shared.x, 1)
                await reads(kernel, shared)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, reader, kernel, shared, name="reader", cpu=0)
        async with syscall(kernel):
            await synchronize_rcu(kernel)

    return explore(main, preempt=preempt, limit=200).titles


@pytest.mark.parametrize(("preempt", "flavour"), [("full", "rcu_preempt"), ("none", "rcu_sched")])
def test_a_reader_that_goes_on_for_ever(preempt: str, flavour: str) -> None:
    async def steps(kernel: Kernel, shared: Shared) -> None:
        for _ in range(checks.STALL_STEPS):
            await note("busy")

    async def few(kernel: Kernel, shared: Shared) -> None:
        for _ in range(checks.STALL_STEPS - 10):
            await note("busy")

    assert stalls(steps, preempt) == {f"rcu: INFO: {flavour} detected stalls: task reader"}
    assert not stalls(few, preempt)


@pytest.mark.parametrize(("ms", "stalled"), [(21_001, True), (21_000, False)])
def test_a_reader_that_takes_its_time(ms: int, stalled: bool) -> None:
    async def reader(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock_trace():
                async with sleeping("msleep"):
                    await sleep(ms * 1_000_000)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, reader, kernel, shared, name="reader")
        async with syscall(kernel):
            await synchronize_rcu_tasks_trace(kernel)

    explored = explore(main)
    expected = {"rcu: INFO: rcu_tasks_trace detected stalls: task reader"}
    assert explored.titles == (expected if stalled else set())


async def be_busy() -> None:
    for _ in range(checks.STALL_STEPS + 10):
        await note("busy")


def test_a_reader_that_has_ended() -> None:
    async def reader(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                await WRITE_ONCE(shared.x, 1)
            await be_busy()

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, reader, kernel, shared, name="reader", cpu=0)
        async with syscall(kernel):
            await synchronize_rcu(kernel)

    assert not explore(main, limit=200).findings


def test_a_barrier_that_waits_for_a_long_callback() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await call_rcu(kernel, be_busy)
            await rcu_barrier(kernel)

    assert not explore(main).findings


def test_a_reader_that_nobody_waits_for() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await join(await task(kernel, long_reader, kernel, name="reader"))
            await synchronize_rcu(kernel)

    async def long_reader(kernel: Kernel) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                await be_busy()

    assert not explore(main).findings
