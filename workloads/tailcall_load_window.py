"""May a prog array be updated while a program that tail-calls through it is being loaded?

Covers: BPF_PROG_LOAD of a program with a direct tail call, against bpf_map_update_elem() and
bpf_map_delete_elem() on the slot; then the program runs, and the slot is updated again.
Scenario: the slot holds a program, or not (installed=no). A loader loads the caller while an
updater changes the slot: puts another program there, or removes the one there is. Then a task runs
the caller at a raw tracepoint while the slot is written once more.
Expect: the caller goes to the program that is in the slot, and every update succeeds.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import trace, tracepoint
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
from sim.macros import join, outcome
from workloads.tailcall_poke import From, attach_caller, load_caller, load_target

Change = Literal["update", "delete"]


async def loader(kernel: Kernel, map_fd: int, source: From) -> None:
    """Load the caller, and attach it, unless the array is refused to it."""
    fd = await load_caller(kernel, map_fd, source, "constant")
    await attach_caller(kernel, fd)
    await outcome("loaded" if fd >= 0 else "refused")


async def updater(kernel: Kernel, map_fd: int, fd: int, change: Change) -> None:
    """Change the slot once."""
    if change == "update":
        await bpf_map_update_elem(kernel, map_fd, u32(0), u32(fd))
    else:
        await bpf_map_delete_elem(kernel, map_fd, u32(0))
    await close(kernel, fd)


@kernel_workload(cpus=3)
async def tailcall_load_window(
    kernel: Kernel,
    *,
    source: From = "main",
    change: Change = "update",
    installed: bool = True,
    again: bool = True,
) -> None:
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))
    first, second, third = [await load_target(kernel, value) for value in (1, 2, 3)]
    tp = tracepoint(kernel, "sys_enter")
    if installed:
        checked("install", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(first)))
    await close(kernel, first)
    tasks = [
        await task(kernel, loader, kernel, map_fd, source, name="loader"),
        await task(kernel, updater, kernel, map_fd, second, change, name="updater"),
    ]
    for thread in tasks:
        await join(thread)
    async with syscall(kernel, "sys_enter"):
        await outcome(tuple(await trace(kernel, tp, 0)))
    if again:
        checked("update", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(third)))
        async with syscall(kernel, "sys_enter"):
            await outcome(tuple(await trace(kernel, tp, 0)))
    await close(kernel, third)
