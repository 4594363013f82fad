"""Does a prog array take programs of one type only?

Covers: the owner of a prog array, which is the type of its first user: of a program that is put
there, or of one that is loaded and tail-calls through it; bpf_tail_call() to what is there then.
Scenario: an updater puts a classifier (target=sched_cls) or a raw tracepoint's program into a slot
of an array that nobody has used. At the same time a raw tracepoint's program that tail-calls
through that slot is loaded (race=load), or a program of that type is put into another slot, and
the caller is loaded afterwards (race=update). If it could be loaded, it runs.
Expect: of two types one is refused, and nobody enters a program of another type.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_SCHED_CLS
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf_create_map, bpf_map_update_elem, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, outcome
from workloads.tailcall_poke import Key, attach_caller, load_caller, load_target

Race = Literal["load", "update"]
Target = Literal["sched_cls", "raw_tracepoint"]

TYPES: dict[Target, int] = {
    "sched_cls": BPF_PROG_TYPE_SCHED_CLS,
    "raw_tracepoint": BPF_PROG_TYPE_RAW_TRACEPOINT,
}


async def loader(kernel: Kernel, map_fd: int, key: Key) -> None:
    """Load the caller, and attach it."""
    fd = await load_caller(kernel, map_fd, "main", key)
    await attach_caller(kernel, fd)
    await outcome("loaded" if fd >= 0 else "refused")


async def updater(kernel: Kernel, map_fd: int, index: int, fd: int) -> None:
    """Put a program into a slot."""
    error = await bpf_map_update_elem(kernel, map_fd, u32(index), u32(fd))
    await outcome("refused" if error else "put")


@kernel_workload(cpus=2)
async def tailcall_owner(
    kernel: Kernel,
    *,
    race: Race = "load",
    target: Target = "sched_cls",
    key: Key = "constant",
) -> None:
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2))
    code = assemble("r0 = 2\nexit")
    fd = checked("target", await bpf_load_program(kernel, TYPES[target], code, name="target"))
    other = await load_target(kernel, 1)
    tp = tracepoint(kernel, "sys_enter")
    tasks = [await task(kernel, updater, kernel, map_fd, 0, fd, name="updater")]
    if race == "load":
        tasks.append(await task(kernel, loader, kernel, map_fd, key, name="loader"))
    else:
        tasks.append(await task(kernel, updater, kernel, map_fd, 1, other, name="other"))
    for thread in tasks:
        await join(thread)
    if race == "update":
        await loader(kernel, map_fd, key)
    async with syscall(kernel, "sys_enter"):
        await outcome(tuple(await trace(kernel, tp, 0)))
