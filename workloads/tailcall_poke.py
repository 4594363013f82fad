"""Are direct tail calls safe while the slots of a prog array change under running programs?

Covers: BPF_MAP_TYPE_PROG_ARRAY, bpf_tail_call() with a constant and with a variable key, from the
main function and from another one, bpf_map_update_elem() and bpf_map_delete_elem() on the array,
text_poke_bp(), the free of programs that were in a slot; a trampoline at the function that
tail-calls (traced=fentry, traced=fexit).
Scenario: callers pass a raw tracepoint whose program tail-calls through slot 0. An updater puts one
plain program after another there, closing it so that the slot holds the last reference, removes it,
and puts one in again. Before that, or not (loaded=no), the caller's program has been loaded. Nobody
traces its function, or somebody does (with tasks_rcu=yes): the tracing program is detached
meanwhile, and another one is attached and detached.
Expect: a caller sees the value of a program that was in the slot, or its own. Nobody executes freed
text, and nobody's registers or stack are wrong.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import Tracepoint, bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import (
    bpf_create_map,
    bpf_map_delete_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from kernel_model.workload import checked, kernel_workload
from sim.errors import UsageError
from sim.macros import join, note, outcome
from workloads.tailcall_trampoline import Kind, attach
from workloads.tailcall_trampoline import tracer as attach_and_detach

From = Literal["main", "subprog"]
Traced = Literal["none", "fentry", "fexit"]
Key = Literal["constant", "variable"]

MISSED = 99  # what the caller returns by itself
FIRST = 50

MAIN = """
    r6 = r1
    r7 = 7
    r8 = {key}
    *(u64 *)(r10 -8) = r7
    r2 = map[progs]
    r3 = {index}
    call bpf_tail_call
    r0 = *(u64 *)(r10 -8)
    r0 += 92
    if r7 == 7 goto out
    r0 = 0
out:
    exit
"""

SUBPROG = """
    r6 = r1
    r7 = 7
    call entry
    if r7 == 7 goto out
    r0 = 0
out:
    exit
entry:
    r6 = r1
    r8 = {key}
    *(u64 *)(r10 -8) = r8
    r2 = map[progs]
    r3 = {index}
    call bpf_tail_call
    r0 = 99
    exit
"""


def caller_code(source: From, key: Key) -> str:
    """The program that tail-calls."""
    code = MAIN if source == "main" else SUBPROG
    if key == "constant":
        return code.format(key="0", index="0")
    return code.format(key="*(u64 *)(r1 +0)", index="r8")


async def load_target(kernel: Kernel, value: int) -> int:
    """A descriptor of a plain program."""
    insns = assemble(f"r6 = {value}\nr0 = r6\nexit")
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    return checked("target", await bpf_load_program(kernel, prog_type, insns, name=f"t{value}"))


async def load_caller(kernel: Kernel, map_fd: int, source: From, key: Key) -> int:
    """A descriptor of the program that tail-calls, or -errno."""
    insns = assemble(caller_code(source, key), {"progs": map_fd})
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    return await bpf_load_program(kernel, prog_type, insns, name="caller")


async def attach_caller(kernel: Kernel, fd: int) -> None:
    """Attach the program that tail-calls, if it could be loaded."""
    if fd >= 0:
        checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", fd))


async def caller(kernel: Kernel, tp: Tracepoint, runs: int, values: tuple[int, ...]) -> None:
    """Make system calls, each of which passes the tracepoint."""
    seen = []
    for _ in range(runs):
        async with syscall(kernel, "sys_enter"):
            seen += await trace(kernel, tp, 0)
    await outcome(tuple(seen))
    if any(value not in values for value in seen):
        await note("violated", "a run has the value of a program that was in the slot, or its own")


async def updater(
    kernel: Kernel, map_fd: int, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """Put programs into the slot, remove the last one, and put others in."""
    for fd in before:
        checked("update", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(fd)))
        await close(kernel, fd)
    await bpf_map_delete_elem(kernel, map_fd, u32(0))
    for fd in after:
        checked("update", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(fd)))
        await close(kernel, fd)


async def tracer(
    kernel: Kernel, fd: int, kind: Kind, function: From, attached: tuple[int, int]
) -> None:
    """Detach the program that traces, and attach and detach another one."""
    for watching in reversed(attached):
        await close(kernel, watching)
    await attach_and_detach(kernel, fd, kind, function, 1)


@kernel_workload(cpus=3)
async def tailcall_poke(
    kernel: Kernel,
    *,
    source: From = "main",
    key: Key = "constant",
    callers: int = 2,
    runs: int = 1,
    updates: int = 1,
    installed: bool = False,
    reinstall: bool = False,
    loaded: bool = True,
    traced: Traced = "none",
) -> None:
    if traced != "none" and kernel.preempt == "full" and "TASKS_RCU" not in kernel.config:
        raise UsageError(f"traced={traced}: a trampoline waits for Tasks RCU: add tasks_rcu=yes")
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))
    targets = [await load_target(kernel, i + 1) for i in range(updates + reinstall)]
    before, after = tuple(targets[:updates]), tuple(targets[updates:])
    tp = tracepoint(kernel, "sys_enter")
    fd = -1
    if loaded:
        fd = checked("caller", await load_caller(kernel, map_fd, source, key))
        await attach_caller(kernel, fd)
    if installed:
        first = await load_target(kernel, FIRST)
        checked("install", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(first)))
        await close(kernel, first)
    values = (MISSED, FIRST, *range(1, updates + reinstall + 1))
    tasks = [await task(kernel, updater, kernel, map_fd, before, after, name="updater")]
    if not loaded:  # which the array may refuse, while its first user becomes its owner
        fd = await load_caller(kernel, map_fd, source, key)
        await attach_caller(kernel, fd)
    if traced != "none" and fd >= 0:
        attached = await attach(kernel, fd, traced, source)
        args = (fd, traced, source, attached)
        tasks.append(await task(kernel, tracer, kernel, *args, name="tracer"))
    tasks += [
        await task(kernel, caller, kernel, tp, runs, values, name=f"caller{i}")
        for i in range(callers)
    ]
    for thread in tasks:
        await join(thread)
