"""Contexts, system calls, and which threads can run beside each other."""

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.preempt import (
    local_bh_disable,
    local_irq_save,
    migrate_disable,
    preempt_disable,
)
from kernel_model.linux.task import (
    cond_resched,
    context,
    kthread,
    sleeping,
    syscall,
    task,
)
from kernel_model.rcu.tree import rcu_read_lock
from sim.errors import MisuseError
from sim.macros import READ_ONCE, WRITE_ONCE, join, note, outcome
from sim.threads import current
from tests.kernel_model.support import Shared, explore

PREEMPT = pytest.mark.parametrize("preempt", ["none", "full"])
REGIONS = [preempt_disable, migrate_disable, local_irq_save, local_bh_disable]


async def write_twice(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        await WRITE_ONCE(shared.x, 1)
        await WRITE_ONCE(shared.x, 2)


async def write_twice_resched(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        await WRITE_ONCE(shared.x, 1)
        await cond_resched()
        await WRITE_ONCE(shared.x, 2)


async def write_twice_asleep_between(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        await WRITE_ONCE(shared.x, 1)
        async with sleeping("nap"):
            pass
        await WRITE_ONCE(shared.x, 2)


async def write_twice_in_user_mode(kernel: Kernel, shared: Shared) -> None:
    await WRITE_ONCE(shared.x, 1)
    await WRITE_ONCE(shared.x, 2)


async def look(kernel: Kernel, shared: Shared) -> None:
    async with syscall(kernel):
        await outcome(await READ_ONCE(shared.x))


# who writes, preemption, same CPU: what the other task sees
SEEN = [
    (write_twice, "none", True, {0, 2}),
    (write_twice, "none", False, {0, 1, 2}),
    (write_twice, "full", True, {0, 1, 2}),
    (write_twice_in_user_mode, "none", True, {0, 1, 2}),
    (write_twice_asleep_between, "none", True, {0, 1, 2}),
    (write_twice_resched, "none", True, {0, 1, 2}),
]


@pytest.mark.parametrize(("writer", "preempt", "same", "expected"), SEEN)
def test_who_is_preempted(writer: object, preempt: str, same: bool, expected: set[int]) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, writer, kernel, shared, name="writer", cpu=0)  # type: ignore[arg-type]
        await task(kernel, look, kernel, shared, name="other", cpu=0 if same else 1)

    assert {seen for (seen,) in explore(main, preempt=preempt).outcomes} == expected


@pytest.mark.parametrize("region", REGIONS)
def test_regions_are_not_preempted(region: type) -> None:
    async def writer(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with region():
                async with region():
                    await WRITE_ONCE(shared.x, 1)
                await WRITE_ONCE(shared.x, 2)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, writer, kernel, shared, name="writer", cpu=0)
        await task(kernel, look, kernel, shared, name="same", cpu=0)
        await task(kernel, look, kernel, shared, name="there", cpu=1)

    outcomes = explore(main, preempt="full").outcomes
    assert {same for same, _ in outcomes} == {0, 2}
    assert {there for _, there in outcomes} == {0, 1, 2}


def test_readers_are_preempted() -> None:
    async def writer(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                await WRITE_ONCE(shared.x, 1)
                await WRITE_ONCE(shared.x, 2)

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, writer, kernel, shared, name="writer", cpu=0)
        await task(kernel, look, kernel, shared, name="other", cpu=0)

    assert {seen for (seen,) in explore(main, preempt="full").outcomes} == {0, 1, 2}
    assert {seen for (seen,) in explore(main, preempt="none").outcomes} == {0, 2}


@PREEMPT
def test_tasks_go_round_the_cpus(preempt: str) -> None:
    async def where(kernel: Kernel) -> None:
        async with syscall(kernel):
            await outcome(context().cpu)

    async def main(kernel: Kernel, shared: Shared) -> None:
        for nth in range(3):
            await join(await task(kernel, where, kernel, name=f"{nth}"))

    assert explore(main, preempt=preempt, cpus=2).outcomes == {(0, 1, 0)}


def test_kernel_threads_have_cpus_of_their_own_unless_there_is_only_one() -> None:
    async def where() -> None:
        await outcome((current().name, context().cpu, context().kind))

    async def main(kernel: Kernel, shared: Shared) -> None:
        await join(await kthread(kernel, where))
        await join(await kthread(kernel, where, name="my", kind="kworker"))

    assert explore(main).outcomes == {
        (("kthread/main-0", None, "kthread"), ("my", None, "kworker"))
    }
    assert explore(main, cpus=1).outcomes == {
        (("kthread/main-0", 0, "kthread"), ("my", 0, "kworker"))
    }


def test_a_softirq_has_bottom_halves_off() -> None:
    async def look() -> None:
        await outcome((context().bh_disabled, context().atomic))

    async def main(kernel: Kernel, shared: Shared) -> None:
        await kthread(kernel, look, kind="softirq")

    explored = explore(main)
    assert explored.outcomes == {((1, True),)}
    assert not explored.findings


def test_the_main_thread_may_use_the_kernel() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await outcome((context().kind, context().cpu, context().user_mode))
        await outcome(current().context.user_mode)

    assert explore(main).outcomes == {(("task", None, False), True)}


def test_task_work_runs_before_user_mode() -> None:
    async def work() -> None:
        await outcome(("work", context().in_kernel))

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            context().task_work.append(work)
            await note("in between")
            await outcome("system call")
        await outcome("user mode")

    assert explore(main).outcomes == {("system call", ("work", True), "user mode")}


def test_guards_of_an_abandoned_thread_do_not_leave() -> None:
    """A thread that waits for ever keeps what it has when the execution is abandoned."""
    ended: list[str] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with rcu_read_lock():
                await join(current())

    assert explore(main, observer=lambda e: ended.append(e.op.name)).states == {"deadlock"}
    assert "rcu_read_unlock" not in ended


# -- misuse ----------------------------------------------------------------------------------------


def test_kernel_code_in_user_mode() -> None:
    async def user(kernel: Kernel) -> None:
        async with rcu_read_lock():
            pass

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, user, kernel, name="t")

    with pytest.raises(MisuseError, match=r"thread t runs kernel code in user mode.*syscall\(kern"):
        explore(main)


def test_a_system_call_inside_another() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with syscall(kernel):
                pass

    with pytest.raises(MisuseError, match="a syscall starts in user mode"):
        explore(main)
