"""Does a prog array lose its programs when user space is done with it, and only then?

Covers: the references of user space to a prog array, the worker that clears it, updates through
another descriptor, the free of the array.
Scenario: a program tail-calls through a slot that holds the program itself, so that each keeps the
other. One task closes a descriptor of the array, another one has a second descriptor (second=yes),
writes to the slot, looks it up and closes. The array has `entries` slots.
Expect: what was written through a descriptor that is open stays; at the end nothing is left.
"""

from __future__ import annotations

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.rcu.tree import synchronize_rcu
from kernel_model.uapi import (
    bpf_create_map,
    bpf_map_get_fd_by_id,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, note, outcome

CODE = """
    r2 = map[progs]
    r3 = 0
    call bpf_tail_call
    r0 = 0
    exit
"""


async def closer(kernel: Kernel, fd: int) -> None:
    """Close a descriptor of the array."""
    await close(kernel, fd)


async def holder(kernel: Kernel, fd: int, prog_fd: int) -> None:
    """Write to the array, read what was written, close it."""
    if fd >= 0:
        checked("update", await bpf_map_update_elem(kernel, fd, u32(0), u32(prog_fd)))
        found = await bpf_map_lookup_elem(kernel, fd, u32(0))
        await outcome("there" if isinstance(found, bytes) else "gone")
        if isinstance(found, int):
            await note("violated", "what was written to the array is there until it is closed")
        await close(kernel, fd)
    await close(kernel, prog_fd)


async def waiter(kernel: Kernel) -> None:
    """Wait for the readers there are."""
    async with syscall(kernel, "membarrier"):
        await synchronize_rcu(kernel)


@kernel_workload(cpus=3)
async def prog_array_clear(
    kernel: Kernel, *, second: bool = True, entries: int = 1, waiters: int = 0
) -> None:
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, entries))
    insns = assemble(CODE, {"progs": map_fd})
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    prog_fd = checked("program", await bpf_load_program(kernel, prog_type, insns, name="self"))
    checked("install", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(prog_fd)))
    other = -1
    if second:
        other = checked("second descriptor", await bpf_map_get_fd_by_id(kernel, 1))
    tasks = [
        await task(kernel, closer, kernel, map_fd, name="closer"),
        await task(kernel, holder, kernel, other, prog_fd, name="holder"),
    ]
    tasks += [await task(kernel, waiter, kernel, name=f"waiter{i}") for i in range(waiters)]
    for thread in tasks:
        await join(thread)
