"""Does a prog array forget the programs that are gone?

Covers: tracking of programs with direct tail calls, in their main function or in another one, the
free of such a program, and updates of the array afterwards.
Scenario: a program with a tail call is loaded and closed again, and its free is in progress while
a task writes to the slot, twice.
Expect: the updates succeed, and touch nothing that has been freed.
"""

from __future__ import annotations

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.task import task
from kernel_model.uapi import bpf_create_map, bpf_map_update_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join
from workloads.tailcall_poke import From, caller_code, load_target


async def closer(kernel: Kernel, fd: int) -> None:
    """Close the program."""
    await close(kernel, fd)


async def updater(kernel: Kernel, map_fd: int, fds: tuple[int, ...]) -> None:
    """Write to the slot."""
    for fd in fds:
        checked("update", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(fd)))


@kernel_workload(cpus=2)
async def tailcall_subprog_untrack(kernel: Kernel, *, source: From = "subprog") -> None:
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))
    fds = tuple([await load_target(kernel, value) for value in (1, 2)])
    insns = assemble(caller_code(source, "constant"), {"progs": map_fd})
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    fd = checked("caller", await bpf_load_program(kernel, prog_type, insns, name="caller"))
    tasks = [
        await task(kernel, closer, kernel, fd, name="closer"),
        await task(kernel, updater, kernel, map_fd, fds, name="updater"),
    ]
    for thread in tasks:
        await join(thread)
