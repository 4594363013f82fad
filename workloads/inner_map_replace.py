"""Is replacing an inner map safe while programs look values up through the outer map?

Covers: BPF_MAP_TYPE_ARRAY_OF_MAPS and BPF_MAP_TYPE_HASH_OF_MAPS, bpf_map_update_elem() and
bpf_map_delete_elem() from user space, look-ups from programs, the free of inner maps.
Scenario: each reader passes a raw tracepoint whose program does outer[0] -> inner[0] -> value. An
updater puts a fresh inner map into the slot, which holds the last reference to the one before, as
often as asked, and then deletes the slot. At last (teardown) everything is closed.
Expect: a reader sees the value of one of the inner maps, or none. Nobody touches freed memory.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import (
    BPF_F_NO_PREALLOC,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH_OF_MAPS,
)
from kernel_model.bpf.hooks import Tracepoint, bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import (
    bpf_create_map,
    bpf_create_map_in_map,
    bpf_map_delete_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, outcome

Outer = Literal["array", "hash", "hash_no_prealloc"]

OUTER_MAPS: dict[Outer, tuple[int, int]] = {
    "array": (BPF_MAP_TYPE_ARRAY_OF_MAPS, 0),
    "hash": (BPF_MAP_TYPE_HASH_OF_MAPS, 0),
    "hash_no_prealloc": (BPF_MAP_TYPE_HASH_OF_MAPS, BPF_F_NO_PREALLOC),
}
FIRST_VALUE = 100
MISSING = 0xFFFF_FFFF

LOOKUP = """
    w1 = 0
    *(u32 *)(r10 -4) = r1
    r2 = r10
    r2 += -4
    r1 = map[outer]
    call bpf_map_lookup_elem
    if r0 == 0x0 goto missing
    r2 = r10
    r2 += -4
    r1 = r0
    call bpf_map_lookup_elem
    if r0 == 0x0 goto missing
    r0 = *(u32 *)(r0 +0)
    exit
missing:
    w0 = -1
    exit
"""


async def new_inner_map(kernel: Kernel, value: int) -> int:
    """A descriptor of an array with one element."""
    fd = checked("inner map", await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1))
    checked("its value", await bpf_map_update_elem(kernel, fd, u32(0), u32(value)))
    return fd


async def new_outer_map(kernel: Kernel, outer: Outer, updates: int) -> tuple[int, tuple[int, ...]]:
    """Descriptors of a map whose slot has the last reference to an inner one, and of fresh ones."""
    map_type, flags = OUTER_MAPS[outer]
    first, *fresh = [await new_inner_map(kernel, FIRST_VALUE + i) for i in range(updates + 1)]
    fd = checked("outer map", await bpf_create_map_in_map(kernel, map_type, 4, first, 1, flags))
    checked("first inner map", await bpf_map_update_elem(kernel, fd, u32(0), u32(first)))
    await close(kernel, first)
    return fd, tuple(fresh)


async def reader(kernel: Kernel, tp: Tracepoint, runs: int) -> None:
    """Make system calls, each of which passes the tracepoint."""
    seen = []
    for _ in range(runs):
        async with syscall(kernel, "sys_enter"):
            [value] = await trace(kernel, tp)
        seen.append("none" if value == MISSING else value)
    await outcome(tuple(seen))


async def updater(kernel: Kernel, outer_fd: int, fresh: tuple[int, ...]) -> None:
    """Replace the inner map by each of the fresh ones, then delete it."""
    for fd in fresh:
        checked("update", await bpf_map_update_elem(kernel, outer_fd, u32(0), u32(fd)))
        await close(kernel, fd)
    checked("delete", await bpf_map_delete_elem(kernel, outer_fd, u32(0)))


@kernel_workload()
async def inner_map_replace(
    kernel: Kernel,
    *,
    outer: Outer = "array",
    readers: int = 1,
    runs: int = 1,
    updates: int = 1,
    teardown: bool = False,
) -> None:
    outer_fd, fresh = await new_outer_map(kernel, outer, updates)

    tp = tracepoint(kernel, "sys_enter")
    insns = assemble(LOOKUP, {"outer": outer_fd})
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    prog_fd = checked("program", await bpf_load_program(kernel, prog_type, insns, name="lookup"))
    link_fd = checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", prog_fd))

    tasks = [
        await task(kernel, reader, kernel, tp, runs, name=f"reader{i}") for i in range(readers)
    ]
    tasks.append(await task(kernel, updater, kernel, outer_fd, fresh, name="updater"))
    for thread in tasks:
        await join(thread)
    if teardown:
        for fd in (link_fd, prog_fd, outer_fd):
            await close(kernel, fd)
