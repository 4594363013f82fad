"""Trampolines: who runs when, with which arguments; attaching, detaching, what is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.boot import boot
from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY
from kernel_model.bpf.ftrace import Ftrace, TracedFunction, call_function, traced_function
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.bpf.trampoline import Trampolines
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EINVAL, ENOENT
from kernel_model.linux.task import syscall
from kernel_model.uapi import bpf_create_map, bpf_map_lookup_elem, close, u32
from sim import ops
from sim.events import Event
from sim.execution import Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.maps import explore, together

FUNCTION = "__x64_sys_getpgid"
TASKS = frozenset({"TASKS_RCU"})

# Appends its number to the digits in the map: the order in which programs ran can be read there.
LOG = """
    r6 = r1
    r1 = map_value[log]
    r2 = *(u64 *)(r1 +0)
    r2 *= 10
    r2 += {number}
    *(u64 *)(r1 +0) = r2
"""


async def body(kernel: Kernel, pid: int) -> int:
    del kernel
    return pid + 1


async def attach(kernel: Kernel, kind: int, code: str, log: int) -> tuple[int, int]:
    """Descriptors of a program and of its link, or -errno in the place of the link."""
    insns = assemble(code, {"log": log})
    fd = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING,
        insns,
        expected_attach_type=kind,
        attach_to=FUNCTION,
    )
    assert fd >= 0
    return fd, await bpf_raw_tracepoint_attach(kernel, "", fd)


async def call(kernel: Kernel, function: TracedFunction, pid: int = 6) -> int:
    async with syscall(kernel, "sys_getpgid"):
        return await call_function(kernel, function, pid)


def alone(main: Any, version: str = "5.10") -> Any:
    """What a task returns that nobody disturbs; nothing may go wrong."""
    results: list[Any] = []

    async def start(kernel: Kernel) -> None:
        await together(kernel, lambda: undisturbed(kernel, main, results))

    found = explore(start, version, runs=1, config=TASKS)
    assert not found.wrong
    return results[0]


async def undisturbed(kernel: Kernel, main: Any, results: list[Any]) -> None:
    function = traced_function(kernel, FUNCTION, body)
    log = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)
    results.append(await main(kernel, function, log))


async def logged(kernel: Kernel, log: int) -> int:
    value = await bpf_map_lookup_elem(kernel, log, u32(0))
    assert isinstance(value, bytes)
    return int.from_bytes(value, "little")


def watch(number: int) -> str:
    return f"{LOG.format(number=number)}r0 = 0\nexit"


@pytest.mark.parametrize("version", ["5.6", "5.10", "5.12", "6.12"])
def test_the_program_attached_last_runs_first_and_fexit_runs_behind_the_function(
    version: str,
) -> None:
    async def main(kernel: Kernel, function: TracedFunction, log: int) -> tuple[int, int]:
        for number in (1, 2):
            await attach(kernel, BPF_TRACE_FENTRY, watch(number), log)
        for number in (3, 4):
            await attach(kernel, BPF_TRACE_FEXIT, watch(number), log)
        return await call(kernel, function), await logged(kernel, log)

    assert alone(main, version) == (7, 2143)


def test_fexit_gets_the_arguments_and_what_the_function_returned() -> None:
    code = "r2 = map_value[log]\nr3 = *(u64 *)(r1 +0)\nr3 *= 10\nr4 = *(u64 *)(r1 +8)\nr3 += r4\n"

    async def main(kernel: Kernel, function: TracedFunction, log: int) -> int:
        code_ = f"{code}*(u64 *)(r2 +0) = r3\nr0 = 0\nexit"
        await attach(kernel, BPF_TRACE_FEXIT, code_, log)
        await call(kernel, function)
        return await logged(kernel, log)

    assert alone(main) == 67


@pytest.mark.parametrize(("result", "returned"), [(0, 7), (-5 & 0xFFFF_FFFF, -5 & 0xFFFF_FFFF)])
def test_fmod_ret_decides_whether_the_function_is_called(result: int, returned: int) -> None:
    async def main(kernel: Kernel, function: TracedFunction, log: int) -> int:
        await attach(kernel, BPF_MODIFY_RETURN, f"w0 = {result}\nexit", log)
        return await call(kernel, function)

    assert alone(main) == returned


@pytest.mark.parametrize("version", ["5.5", "5.10", "5.12"])
def test_when_the_last_program_has_gone_nothing_is_left(version: str) -> None:
    async def main(kernel: Kernel, function: TracedFunction, log: int) -> tuple[int, int, Any]:
        fds = await attach(kernel, BPF_TRACE_FENTRY, watch(1), log)
        await call(kernel, function)
        for fd in reversed(fds):
            await close(kernel, fd)
        again = await call(kernel, function)
        table = kernel.subsystem(Trampolines).table.value
        direct = kernel.subsystem(Ftrace).direct_functions.value
        return again, await logged(kernel, log), (table, direct)

    assert alone(main, version) == (7, 1, ((), ()))


def test_errors_of_attaching() -> None:
    async def main(kernel: Kernel, function: TracedFunction, log: int) -> tuple[int, int]:
        del function
        fd, link = await attach(kernel, BPF_TRACE_FENTRY, watch(1), log)
        assert link >= 0
        twice = await bpf_raw_tracepoint_attach(kernel, "", fd)
        named = await bpf_raw_tracepoint_attach(kernel, "sys_enter", fd)
        return twice, named

    assert alone(main) == (-ENOENT, -EINVAL)


def attached_and_detached(version: str) -> list[Event]:
    """The steps of one program that is attached, detached and freed."""
    memory = Memory()
    kernel = boot(memory, version, config=TASKS)
    events: list[Event] = []

    async def attach_and_detach(kernel: Kernel, function: TracedFunction, log: int) -> None:
        del function
        fd, link = await attach(kernel, BPF_TRACE_FENTRY, watch(1), log)
        await close(kernel, link)
        await close(kernel, fd)

    async def main() -> None:
        await undisturbed(kernel, attach_and_detach, [])

    direct.run(Execution(main, memory, Dfs(), observer=events.append))
    return events


def waits(version: str) -> list[str]:
    """What is waited for while one program is attached and detached, in order."""
    events = attached_and_detached(version)
    names = ("synchronize_rcu_mult", "synchronize_rcu_tasks", "call_rcu_tasks_trace")
    starts = [e for e in events if e.op.name in names and e.op.kind == ops.GP_START]
    return [f"{event.op.name}: {event.op.target.name}" for event in starts]


def test_what_is_waited_for_where() -> None:
    """kernel-facts 3.7: before a half is written, in unregistering, before the page is freed."""
    both = ["synchronize_rcu_mult: rcu_tasks", "synchronize_rcu_mult: rcu_tasks_trace"]
    tasks = "synchronize_rcu_tasks: rcu_tasks"

    assert waits("5.5") == [tasks]  # unregistering; nothing before a half or the free
    assert waits("5.6") == [tasks, tasks, tasks]
    assert waits("5.10") == [*both, tasks, tasks]
    assert waits("5.12") == [tasks, "call_rcu_tasks_trace: rcu_tasks_trace"]


def test_a_link_leaves_the_trampoline_drops_it_and_then_drops_its_program() -> None:
    events = attached_and_detached("5.10")
    steps = [
        (event.op.name, getattr(event.op.target, "label", ""))
        for event in events
        if event.op.kind in (ops.STORE, ops.RMW, ops.FREE)
    ]

    def at(kind: str, field: str) -> list[int]:
        wanted = [label.startswith(kind) and label.endswith(field) for _, label in steps]
        return [index for index, found in enumerate(wanted) if found]

    unlinked = at("bpf_trampoline#", ".fentry")[-1]
    dropped = at("bpf_trampoline#", ".refcnt")[-1]
    loaded = steps.index(("store", steps[at("bpf_prog_aux#", ".id")[0]][1]))
    puts = [i for i in at("bpf_prog_aux#", ".refcnt") if steps[i][0].endswith("dec_and_test")]

    assert loaded < unlinked < dropped < puts[0]
