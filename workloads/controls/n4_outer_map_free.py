"""May the inner maps of an outer map that is freed be freed at once?

Covers: the end of a program, of its outer map, and of the inner map in its slot.
Scenario: a task comes by a raw tracepoint whose program does outer[0] -> inner[0] -> value. Another
one detaches the program and closes the outer map, whose slot has the last reference to the inner
one; with emptied=yes it deletes the slot before that.
Expect: the program sees the value of the inner map, or none.
"""

from __future__ import annotations

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.hooks import Tracepoint, bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf_map_delete_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, outcome
from workloads.inner_map_replace import LOOKUP, Outer, new_outer_map


async def reader(kernel: Kernel, tp: Tracepoint) -> None:
    """Come by the tracepoint, where the program may be gone."""
    async with syscall(kernel, "sys_enter"):
        await outcome(tuple(await trace(kernel, tp)))


async def closer(kernel: Kernel, link_fd: int, outer_fd: int) -> None:
    """Give up the program and the outer map."""
    await close(kernel, link_fd)
    await close(kernel, outer_fd)


async def remover(kernel: Kernel, link_fd: int, outer_fd: int) -> None:
    """Empty the slot before that."""
    checked("delete", await bpf_map_delete_elem(kernel, outer_fd, u32(0)))
    await closer(kernel, link_fd, outer_fd)


@kernel_workload(cpus=2)
async def n4_outer_map_free(
    kernel: Kernel, *, outer: Outer = "array", readers: int = 1, emptied: bool = False
) -> None:
    outer_fd, _ = await new_outer_map(kernel, outer, 0)
    tp = tracepoint(kernel, "sys_enter")
    insns = assemble(LOOKUP, {"outer": outer_fd})
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    prog_fd = checked("program", await bpf_load_program(kernel, prog_type, insns, name="lookup"))
    link_fd = checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", prog_fd))
    await close(kernel, prog_fd)
    tasks = [await task(kernel, reader, kernel, tp, name=f"reader{i}") for i in range(readers)]
    ends = remover if emptied else closer
    tasks.append(await task(kernel, ends, kernel, link_fd, outer_fd, name="closer"))
    for thread in tasks:
        await join(thread)
