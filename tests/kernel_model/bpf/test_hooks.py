"""Entry points: what is held while a program runs, how few steps it takes, attaching, detaching."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kernel_model.bpf.core import BpfCall, BpfRun
from kernel_model.bpf.hooks import (
    TC_ACT_UNSPEC,
    ClsBpfHead,
    ClsBpfProg,
    attach_sleepable,
    bpf_raw_tracepoint_attach,
    bpf_trace_run,
    call_sleepable,
    classifier,
    cls_bpf_change,
    cls_bpf_delete,
    detach_sleepable,
    sch_handle_ingress,
    sleepable_hook,
    trace,
    tracepoint,
    u64s,
)
from kernel_model.bpf.prog import BpfProg
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_SCHED_CLS
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EBADF, EBUSY, EINVAL, ENOENT, ENOMEM
from kernel_model.linux.task import context, syscall, task
from kernel_model.rcu.tree import call_rcu
from kernel_model.uapi import close
from sim.macros import join, note
from sim.strategies.dfs import Dfs
from sim.strategies.pct import Pct
from tests.kernel_model.bpf.maps import explore as maps_explore
from tests.kernel_model.bpf.maps import together
from tests.kernel_model.bpf.running import (
    Once,
    explore,
    is_fetch,
    load,
    load_sleepable,
    program,
    run,
)

Enter = Callable[[Kernel, BpfProg], Awaitable[Any]]


async def at_tracepoint(kernel: Kernel, prog: BpfProg) -> None:
    tp = tracepoint(kernel, "tp")
    tp.initial(tp.funcs, (prog,))
    await trace(kernel, tp, 7)


async def at_classifier(kernel: Kernel, prog: BpfProg) -> None:
    head = classifier(kernel)
    head.initial(head.plist, kernel.memory.static(ClsBpfProg, prog))
    await sch_handle_ingress(kernel, head, u64s(7))


async def at_sleepable(kernel: Kernel, prog: BpfProg) -> None:
    hook = sleepable_hook(kernel, "f")
    hook.initial(hook.prog, prog)
    await call_sleepable(kernel, hook, 7)


def enter_on_a_shared_cpu(enter: Enter, **options: Any) -> tuple[dict[str, int], list[str]]:
    """What is held while a program runs, and the steps before, at and after it."""
    once = Once(**options)
    held: dict[str, int] = {}

    async def look(bpf_run: BpfRun) -> int:
        ctx = context()
        held["preempt"] = ctx.preempt_count
        held["bh"] = ctx.bh_disabled
        held["rcu"] = ctx.rcu_nesting
        held["trace"] = ctx.trace_nesting
        held["argument"] = (await bpf_run.read(bpf_run.ctx, 1))[0]
        await note("program")
        return 0

    prog = program(once.memory, "call 200\nexit", {200: BpfCall("look", 0, look)})

    async def passer_by() -> None:
        async with syscall(once.kernel):
            await note("begin")
            await enter(once.kernel, prog)
            await note("end")

    async def idle() -> None:
        """Makes others share the CPU."""

    async def main() -> None:
        for body in (idle, passer_by):
            await join(await task(once.kernel, body, name=body.__name__, cpu=0))

    once.run(main)
    mine = [e for e in once.events if e.thread.name == "passer_by" and not is_fetch(e)]
    steps = [event.op.name for event in mine]
    return held, steps[steps.index("begin") + 1 : steps.index("end")]


@pytest.mark.parametrize(
    ("enter", "holds", "steps"),
    [
        (
            at_tracepoint,
            {"preempt": 1, "bh": 0, "rcu": 1, "trace": 0},
            "preempt_disable preempt_disable rcu_dereference_raw program"
            " preempt_enable preempt_enable",
        ),
        (
            at_classifier,
            {"preempt": 0, "bh": 1, "rcu": 1, "trace": 0},
            "local_bh_disable local_bh_disable rcu_dereference load program"
            " local_bh_enable local_bh_enable",
        ),
        (
            at_sleepable,
            {"preempt": 0, "bh": 0, "rcu": 0, "trace": 1},
            "rcu_read_lock_trace might_fault rcu_dereference program rcu_read_unlock_trace",
        ),
    ],
)
def test_program_runs_in_its_context(enter: Enter, holds: dict[str, int], steps: str) -> None:
    """CPU and RCU section are taken and given back by one step each; one step reads the pointer."""
    held, taken = enter_on_a_shared_cpu(enter)

    assert held == {**holds, "argument": 7}
    assert taken == steps.split()


@pytest.mark.parametrize("enter", [at_tracepoint, at_classifier])
def test_without_preemption_entering_takes_no_step(enter: Enter) -> None:
    _, taken = enter_on_a_shared_cpu(enter, preempt="none")

    assert [step for step in taken if step.startswith(("preempt", "local", "rcu_read"))] == []


def test_tracepoint_program_in_a_preemptible_task_is_warned_of() -> None:
    once = Once()
    prog = program(once.memory, "r0 = 3\nexit")

    async def main() -> int:
        async with syscall(once.kernel):
            return await bpf_trace_run(once.kernel, prog)

    assert once.run(main) == 3
    assert "WARN" in once.steps


# -- tracepoints ---------------------------------------------------------------------------------


def test_tracepoint_runs_what_is_attached_in_order() -> None:
    async def main(kernel: Kernel) -> list[list[int]]:
        tp = tracepoint(kernel, "sched_switch")
        results: list[list[int]] = []

        async def pass_by() -> None:
            async with syscall(kernel):
                results.append(await trace(kernel, tp, 30, -1))

        links = []
        for code in ("r0 = *(u64 *)(r1 +0)\nexit", "r0 = *(u32 *)(r1 +12)\nexit"):
            fd = await load(kernel, code)
            links.append(await bpf_raw_tracepoint_attach(kernel, "sched_switch", fd))
            await close(kernel, fd)
        await pass_by()
        await close(kernel, links[0])
        await pass_by()
        await close(kernel, links[1])
        await pass_by()
        return results

    assert run(main) == [[30, 0xFFFF_FFFF], [0xFFFF_FFFF], []]


def test_attaching_to_a_tracepoint_fails() -> None:
    async def main(kernel: Kernel) -> list[int]:
        tracepoint(kernel, "tp")
        tracing = await load(kernel, "r0 = 0\nexit")
        other = await load(kernel, "r0 = 0\nexit", BPF_PROG_TYPE_SCHED_CLS)
        failed = [
            await bpf_raw_tracepoint_attach(kernel, "tp", 31),
            await bpf_raw_tracepoint_attach(kernel, "tp", other),
            await bpf_raw_tracepoint_attach(kernel, "no_such", tracing),
        ]
        await close(kernel, tracing)
        await close(kernel, other)
        return failed

    assert run(main) == [-EBADF, -EINVAL, -ENOENT]


def test_attaching_without_memory_leaves_nothing_behind() -> None:
    async def main(kernel: Kernel) -> int:
        tracepoint(kernel, "tp")
        fd = await load(kernel, "r0 = 0\nexit")
        kernel.faults |= {"slab"}  # type: ignore[misc]  # from now on
        link = await bpf_raw_tracepoint_attach(kernel, "tp", fd)
        await close(kernel, fd)
        await close(kernel, link)
        return min(link, 0)

    explored = explore(main)
    assert not explored.wrong
    assert set(explored.returned) == {0, -ENOMEM}


# -- classifiers ---------------------------------------------------------------------------------


async def change(kernel: Kernel, head: ClsBpfHead, code: str) -> None:
    fd = await load(kernel, code, BPF_PROG_TYPE_SCHED_CLS)
    async with syscall(kernel):
        assert await cls_bpf_change(kernel, head, fd) == 0
    await close(kernel, fd)


async def receive(kernel: Kernel, head: ClsBpfHead, skb: bytes | bytearray = b"\7") -> int:
    async with syscall(kernel):
        return await sch_handle_ingress(kernel, head, skb)


def test_classifier_runs_the_latest_filter() -> None:
    async def main(kernel: Kernel) -> list[int]:
        head = classifier(kernel)
        seen = [await receive(kernel, head)]
        await change(kernel, head, "r0 = 1\nexit")
        seen.append(await receive(kernel, head))
        await change(kernel, head, "r0 = *(u8 *)(r1 +0)\nexit")
        seen.append(await receive(kernel, head))
        async with syscall(kernel):
            seen += [await cls_bpf_delete(kernel, head), await cls_bpf_delete(kernel, head)]
        return seen

    assert run(main) == [TC_ACT_UNSPEC, 1, 7, 0, -ENOENT]


def test_classifier_takes_only_its_own_type() -> None:
    async def main(kernel: Kernel) -> int:
        head = classifier(kernel)
        fd = await load(kernel, "r0 = 0\nexit")
        async with syscall(kernel):
            error = await cls_bpf_change(kernel, head, fd)
        await close(kernel, fd)
        return error

    assert run(main) == -EINVAL


def test_packet_is_changed_in_place() -> None:
    async def main(kernel: Kernel) -> bytearray:
        head = classifier(kernel)
        skb = bytearray(8)
        await change(
            kernel, head, "r0 = 0\n*(u32 *)(r1 +4) = r0\nr0 = 9\n*(u8 *)(r1 +0) = r0\nexit"
        )
        await receive(kernel, head, skb)
        async with syscall(kernel):
            await cls_bpf_delete(kernel, head)
        return skb

    assert run(main) == bytearray([9, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("waits", [True, False])
def test_replaced_filter_goes_only_after_the_packets_that_met_it(waits: bool) -> None:
    async def at_once(kernel: Kernel, function: Any, *args: Any) -> None:
        del kernel
        await function(*args)

    async def main(kernel: Kernel) -> int:
        if not waits:
            kernel.replace(call_rcu, at_once)
        head = classifier(kernel)
        seen: list[int] = []

        async def packet() -> None:
            seen.append(await receive(kernel, head))

        async def replace() -> None:
            async with syscall(kernel):
                assert await cls_bpf_change(kernel, head, second) == 0

        second = await load(kernel, "r0 = 2\nexit", BPF_PROG_TYPE_SCHED_CLS)
        await change(kernel, head, "r0 = 1\nexit")
        for started in (await task(kernel, packet), await task(kernel, replace)):
            await join(started)
        await close(kernel, second)
        async with syscall(kernel):
            await cls_bpf_delete(kernel, head)
        return seen[0]

    explored = explore(main, strategy=Pct(1, depth=2), stop="use-after-free", limit=200)
    assert ("use-after-free" in explored.wrong) == (not waits)
    assert waits == (not explored.wrong and set(explored.returned) == {1, 2})


# -- programs that may sleep ---------------------------------------------------------------------


def test_sleepable_program_is_attached_to_its_function_once() -> None:
    async def main(kernel: Kernel) -> list[int | None]:
        hook = sleepable_hook(kernel, "bpf_modify_return_test")
        other = sleepable_hook(kernel, "__x64_sys_nanosleep")
        fd = await load_sleepable(kernel, "r0 = *(u64 *)(r1 +0)\nexit", {})
        plain = await load(kernel, "r0 = 0\nexit")
        async with syscall(kernel):
            seen = [
                await detach_sleepable(kernel, hook),
                await call_sleepable(kernel, hook, 4),
                await attach_sleepable(kernel, other, fd),
                await attach_sleepable(kernel, hook, plain),
                await attach_sleepable(kernel, hook, fd),
                await attach_sleepable(kernel, hook, fd),
                await call_sleepable(kernel, hook, 4),
                await detach_sleepable(kernel, hook),
            ]
        await close(kernel, fd)
        await close(kernel, plain)
        return seen

    assert run(main) == [-ENOENT, None, -EINVAL, -EINVAL, 0, -EBUSY, 4, 0]


@pytest.mark.parametrize(
    ("add", "found"), [((), False), (("mutant:sleepable-call-rcu",), True)], ids=str
)
def test_a_sleepable_program_is_freed_when_nobody_sleeps_in_it(
    add: tuple[str, ...], *, found: bool
) -> None:
    """The bare entry looks the program up inside its section, so only the free can be wrong."""
    code = f"r1 = r10\nr1 += -8\nr2 = 8\nr3 = {1 << 22}\ncall bpf_copy_from_user\nr0 = 0\nexit"

    async def main(kernel: Kernel) -> None:
        hook = sleepable_hook(kernel, "bpf_modify_return_test")
        fd = await load_sleepable(kernel, code, {})
        async with syscall(kernel):
            assert await attach_sleepable(kernel, hook, fd) == 0

        async def caller() -> None:
            async with syscall(kernel):
                await call_sleepable(kernel, hook, 1)

        async def closer() -> None:
            async with syscall(kernel):
                await detach_sleepable(kernel, hook)
            await close(kernel, fd)

        await together(kernel, caller, closer)

    strategy = Dfs(1, distinct=True)
    explored = maps_explore(main, strategy=strategy, add=add, stop="use-after-free-execute")

    assert ("use-after-free-execute" in explored.kinds) == found
    assert found or not explored.wrong
