"""May a direct tail call be removed while a program is about to take it?

Covers: bpf_map_delete_elem() on a slot of a prog array: the bypass is closed, a grace period goes
by, the target becomes a nop; the free of the program that was in the slot.
Scenario: a task comes by the caller at a raw tracepoint. Meanwhile another one deletes the slot,
which has the last reference to the target.
Expect: the caller sees the target's value or its own, with its registers and stack as they were.
"""

from __future__ import annotations

from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import tracepoint
from kernel_model.kernel import Kernel
from kernel_model.linux.task import task
from kernel_model.uapi import bpf_create_map, bpf_map_delete_elem, bpf_map_update_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join
from workloads.tailcall_poke import (
    FIRST,
    MISSED,
    From,
    attach_caller,
    caller,
    load_caller,
    load_target,
)


async def remover(kernel: Kernel, map_fd: int) -> None:
    """Empty the slot."""
    checked("delete", await bpf_map_delete_elem(kernel, map_fd, u32(0)))


@kernel_workload(cpus=2)
async def n2_tailcall_remove(
    kernel: Kernel, *, source: From = "main", callers: int = 1, runs: int = 1
) -> None:
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))
    tp = tracepoint(kernel, "sys_enter")
    target = await load_target(kernel, FIRST)
    checked("install", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(target)))
    await close(kernel, target)
    fd = checked("caller", await load_caller(kernel, map_fd, source, "constant"))
    await attach_caller(kernel, fd)
    values = (MISSED, FIRST)
    tasks = [
        await task(kernel, caller, kernel, tp, runs, values, name=f"caller{i}")
        for i in range(callers)
    ]
    tasks.append(await task(kernel, remover, kernel, map_fd, name="remover"))
    for thread in tasks:
        await join(thread)
