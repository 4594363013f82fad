"""May a program be put into a prog array while the array is being cleared?

Covers: the worker that clears a prog array once user space has no reference to it, against
bpf_map_update_elem() through a descriptor that was got by id; direct tail calls through the slot.
Scenario: a task comes by the caller at a raw tracepoint. Another one closes the only descriptor of
the array, gets a new one by the array's id, puts a program into the slot, and, once the worker is
through, looks the slot up and comes by the caller itself; the new descriptor stays open. With
kept=no it closes the new descriptor at once; at last the caller goes, too.
Expect: at the end the caller jumps if the slot has a program, and does not if it has none. Of what
nobody has any more, nothing is left.
"""

from __future__ import annotations

from typing import cast

from kernel_model.bpf.arraymap import BpfArray
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import Tracepoint, bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.map_refs import MapIds
from kernel_model.bpf.prog_array import prog_array_map_clear_deferred
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.linux.workqueue import Work, flush_work
from kernel_model.uapi import (
    bpf_create_map,
    bpf_map_get_fd_by_id,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, load, note, outcome
from workloads.tailcall_poke import FIRST, MISSED, caller, load_caller, load_target

SECOND = 51


async def flush_clear(kernel: Kernel) -> None:
    """Sleep until the worker has cleared the array, the only map there is."""
    async with syscall(kernel, "flush_work"):
        idr = await load(kernel.subsystem(MapIds).map_idr)
        [(_, array)] = idr.entries
        work = cast("BpfArray", array).aux.work
        await flush_work(Work(work, prog_array_map_clear_deferred, array))


async def insert(kernel: Kernel, map_fd: int, prog_fd: int) -> int:
    """Close the array, get it back, and put the program in: the descriptor."""
    await close(kernel, map_fd)
    fd = checked("descriptor", await bpf_map_get_fd_by_id(kernel, 1))
    checked("insert", await bpf_map_update_elem(kernel, fd, u32(0), u32(prog_fd)))
    return fd


async def keeper(kernel: Kernel, map_fd: int, prog_fd: int, tp: Tracepoint) -> None:
    """Insert, and see what has come of it."""
    fd = await insert(kernel, map_fd, prog_fd)
    await flush_clear(kernel)
    there = isinstance(await bpf_map_lookup_elem(kernel, fd, u32(0)), bytes)
    async with syscall(kernel, "sys_enter"):
        [value] = await trace(kernel, tp, 0)
    await outcome("inserted" if there else "cleared")
    if value != (SECOND if there else MISSED):
        await note("violated", "the caller jumps to what is in the slot")


async def leaver(kernel: Kernel, map_fd: int, prog_fd: int, tp: Tracepoint) -> None:
    """Insert, and do not wait."""
    del tp
    await close(kernel, await insert(kernel, map_fd, prog_fd))


@kernel_workload(cpus=2)
async def n7_prog_array_insert_clear(
    kernel: Kernel, *, callers: int = 1, runs: int = 1, kept: bool = True
) -> None:
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))
    first, second = [await load_target(kernel, value) for value in (FIRST, SECOND)]
    checked("install", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(first)))
    await close(kernel, first)
    tp = tracepoint(kernel, "sys_enter")
    fd = checked("caller", await load_caller(kernel, map_fd, "main", "constant"))
    link_fd = checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", fd))
    values = (MISSED, FIRST, SECOND)
    tasks = [
        await task(kernel, caller, kernel, tp, runs, values, name=f"caller{i}")
        for i in range(callers)
    ]
    inserter = keeper if kept else leaver
    tasks.append(await task(kernel, inserter, kernel, map_fd, second, tp, name="inserter"))
    for thread in tasks:
        await join(thread)
    if not kept:
        await close(kernel, link_fd)
        await close(kernel, fd)
