"""Does a prog array forget a program that could not be loaded?

Covers: what BPF_PROG_LOAD undoes when it fails late: once the prog arrays of the program track it,
once its functions do; updates of the arrays afterwards.
Scenario: a program tail-calls through two prog arrays, in its main function or in another one
(source). While it is loaded one allocation or copy of the loader fails, or none does: the n-th, by
choice. Then a task writes to the slots; or one does so at the same time, too (meanwhile), which up
to v6.6 runs into the load window of programs that can be loaded.
Expect: the updates succeed, and touch nothing that has been freed; nothing is left of the program.
"""

from __future__ import annotations

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import errno_name
from kernel_model.linux.fault_inject import proc_fail_nth_write
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf_create_map, bpf_map_update_elem, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import choose, join, outcome
from workloads.tailcall_poke import From, load_target

MOST = 16  # more than can fail while the program is loaded

TAIL_CALLS = """
    r6 = r1
    r2 = map[first]
    r3 = 0
    call bpf_tail_call
    r1 = r6
    r2 = map[second]
    r3 = 0
    call bpf_tail_call
    r0 = 0
    exit
"""
CODE: dict[From, str] = {"main": TAIL_CALLS, "subprog": f"call next\nexit\nnext:{TAIL_CALLS}"}


async def loader(kernel: Kernel, maps: dict[str, int], source: From) -> None:
    """Load the program while something fails."""
    insns = assemble(CODE[source], maps)
    nth = await choose(MOST, "fail-nth")
    async with syscall(kernel, "write"):
        proc_fail_nth_write(nth)
    fd = await bpf_load_program(kernel, BPF_PROG_TYPE_RAW_TRACEPOINT, insns, name="caller")
    async with syscall(kernel, "write"):
        proc_fail_nth_write(0)
    await outcome("loaded" if fd >= 0 else errno_name(-fd))


async def updater(kernel: Kernel, maps: dict[str, int], fd: int) -> None:
    """Write to slot 0 of both."""
    for map_fd in maps.values():
        checked("update", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(fd)))


@kernel_workload(cpus=2)
async def tailcall_load_error(
    kernel: Kernel, *, source: From = "main", meanwhile: bool = False
) -> None:
    maps = {
        name: checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))
        for name in ("first", "second")
    }
    targets = [await load_target(kernel, value) for value in (1, 2, 3)]
    await updater(kernel, maps, targets[0])  # so that the arrays have their owner
    loading = await task(kernel, loader, kernel, maps, source, name="loader")
    if not meanwhile:
        await join(loading)
    updating = await task(kernel, updater, kernel, maps, targets[1], name="updater")
    await join(updating)
    await join(loading)
    await updater(kernel, maps, targets[2])
