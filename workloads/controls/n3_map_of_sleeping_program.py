"""May the last descriptor of a map be closed while a program that uses the map sleeps?

Covers: the reference of a program to its maps, the free of a program that may sleep, and of its
maps with it.
Scenario: a task calls a function; the program attached there finds an element, sleeps while it
copies from user memory, and reads the element. Meanwhile another task closes the map and detaches
the program, which are the last references from outside. A second program has been loaded for the
function, and keeps the trampoline; it is not attached (second=loaded), or it is (second=attached),
or there is none (second=none).
Expect: the program reads the element that it has found.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH
from kernel_model.bpf.ftrace import traced_function
from kernel_model.bpf.helpers import UserMemory
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_F_SLEEPABLE, BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY
from kernel_model.kernel import Kernel
from kernel_model.linux.task import task
from kernel_model.uapi import bpf_create_map, bpf_map_update_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join
from workloads.sleepable_vs_nonsleepable import SLEEPING
from workloads.trampoline_update import FUNCTION, RETURN, busy, caller

MapType = Literal["array", "hash"]
Second = Literal["loaded", "attached", "none"]

MAPS: dict[MapType, int] = {"array": BPF_MAP_TYPE_ARRAY, "hash": BPF_MAP_TYPE_HASH}


async def load(kernel: Kernel, code: str, flags: int = 0, **maps: int) -> int:
    """A descriptor of a program for the function."""
    log = bytearray()
    fd = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING,
        assemble(code, maps),
        name="sleeping" if flags else "keeper",
        flags=flags,
        expected_attach_type=BPF_TRACE_FENTRY,
        attach_to=FUNCTION,
        log_buf=log,
    )
    return checked("program", fd, log)


async def load_second(kernel: Kernel, second: Second) -> None:
    """The other program for the function."""
    if second != "none":
        fd = await load(kernel, RETURN)
        if second == "attached":
            checked("link", await bpf_raw_tracepoint_attach(kernel, "", fd))


async def closer(kernel: Kernel, map_fd: int, link_fd: int) -> None:
    """Close the map, and detach the program."""
    await close(kernel, map_fd)
    await close(kernel, link_fd)


@kernel_workload(cpus=2, tasks_rcu=True)
async def n3_map_of_sleeping_program(
    kernel: Kernel, *, map_type: MapType = "array", second: Second = "loaded", runs: int = 1
) -> None:
    map_fd = checked("map", await bpf_create_map(kernel, MAPS[map_type], 4, 4, 1))
    checked("value", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(1)))
    function = traced_function(kernel, FUNCTION, busy)
    await load_second(kernel, second)
    code = SLEEPING.format(addr=UserMemory(kernel, bytes(8)).addr)
    fd = await load(kernel, code, BPF_F_SLEEPABLE, m=map_fd)
    link_fd = checked("link", await bpf_raw_tracepoint_attach(kernel, "", fd))
    await close(kernel, fd)
    tasks = [
        await task(kernel, caller, kernel, function, runs, name="caller"),
        await task(kernel, closer, kernel, map_fd, link_fd, name="closer"),
    ]
    for thread in tasks:
        await join(thread)
