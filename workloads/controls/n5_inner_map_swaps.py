"""May an inner map be swapped again while frees of the ones before are still waiting?

Covers: bpf_map_update_elem() on an array of maps from user space, one after another, and the
frees of inner maps that these leave behind; look-ups from programs.
Scenario: each reader comes by a raw tracepoint whose program does outer[0] -> inner[0] -> value. An
updater puts one fresh inner map after another into the slot, each time dropping the last reference
to the one before.
Expect: a reader sees the value of one of the inner maps.
"""

from __future__ import annotations

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.task import task
from kernel_model.uapi import bpf_map_update_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join
from workloads.inner_map_replace import LOOKUP, new_outer_map, reader


async def updater(kernel: Kernel, outer_fd: int, fresh: tuple[int, ...]) -> None:
    """Replace the inner map by each of the fresh ones."""
    for fd in fresh:
        checked("update", await bpf_map_update_elem(kernel, outer_fd, u32(0), u32(fd)))
        await close(kernel, fd)


@kernel_workload()
async def n5_inner_map_swaps(
    kernel: Kernel, *, readers: int = 2, runs: int = 1, swaps: int = 2
) -> None:
    outer_fd, fresh = await new_outer_map(kernel, "array", swaps)
    tp = tracepoint(kernel, "sys_enter")
    insns = assemble(LOOKUP, {"outer": outer_fd})
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    prog_fd = checked("program", await bpf_load_program(kernel, prog_type, insns, name="lookup"))
    checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", prog_fd))
    tasks = [
        await task(kernel, reader, kernel, tp, runs, name=f"reader{i}") for i in range(readers)
    ]
    tasks.append(await task(kernel, updater, kernel, outer_fd, fresh, name="updater"))
    for thread in tasks:
        await join(thread)
