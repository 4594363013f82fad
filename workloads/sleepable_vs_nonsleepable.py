"""Can a program that sleeps and one that does not share a map that is changed under them?

Covers: one array or hash map used by a sleepable program (through a trampoline) and by one at a raw
tracepoint, updates and deletes from user space, the end of the map while the programs hold it.
Scenario: one task calls the function that the sleepable program is attached to, which copies from
user memory between its look-up and its use of the value; another task passes the tracepoint. An
updater writes to the map, deletes from it, and closes its descriptor.
Expect: each program sees a value that was there, or none; nobody touches freed memory.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_F_NO_PREALLOC, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH
from kernel_model.bpf.ftrace import TracedFunction, call_function, traced_function
from kernel_model.bpf.helpers import UserMemory
from kernel_model.bpf.hooks import Tracepoint, bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_F_SLEEPABLE,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
)
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf_create_map, bpf_map_delete_elem, bpf_map_update_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, outcome
from workloads.trampoline_update import FUNCTION, busy

MapType = Literal["array", "hash", "hash_no_prealloc"]

MAPS: dict[MapType, tuple[int, int]] = {
    "array": (BPF_MAP_TYPE_ARRAY, 0),
    "hash": (BPF_MAP_TYPE_HASH, 0),
    "hash_no_prealloc": (BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC),
}
FIRST, SECOND, NONE = 100, 101, 99

LOOKUP = """
    *(u32 *)(r10 -4) = 0
    r2 = r10
    r2 += -4
    r1 = map[m]
    call bpf_map_lookup_elem
    r7 = r0
"""
PLAIN = f"{LOOKUP}if r7 == 0 goto none\nr0 = *(u32 *)(r7 +0)\nexit\nnone: r0 = {NONE}\nexit"
SLEEPING = f"""{LOOKUP}
    r1 = r10
    r1 += -16
    r2 = 8
    r3 = {{addr}} ll
    call bpf_copy_from_user
    if r7 == 0 goto none
    r1 = *(u32 *)(r7 +0)
none:
    r0 = 0
    exit
"""


async def load_both(kernel: Kernel, map_fd: int) -> None:
    """Load the two programs, and attach them."""
    addr = UserMemory(kernel, bytes(8)).addr
    log = bytearray()
    sleeping = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING,
        assemble(SLEEPING.format(addr=addr), {"m": map_fd}),
        name="sleeping",
        flags=BPF_F_SLEEPABLE,
        expected_attach_type=BPF_TRACE_FENTRY,
        attach_to=FUNCTION,
        log_buf=log,
    )
    checked("sleepable program", sleeping, log)
    checked("link", await bpf_raw_tracepoint_attach(kernel, "", sleeping))
    insns = assemble(PLAIN, {"m": map_fd})
    plain = await bpf_load_program(kernel, BPF_PROG_TYPE_RAW_TRACEPOINT, insns, name="plain")
    checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", checked("plain", plain)))


async def sleeper(kernel: Kernel, function: TracedFunction) -> None:
    """Call the function."""
    async with syscall(kernel, "sys_getpgid"):
        await call_function(kernel, function, 1)


async def passer_by(kernel: Kernel, tp: Tracepoint) -> None:
    """Pass the tracepoint."""
    async with syscall(kernel, "sys_enter"):
        await outcome(tuple(await trace(kernel, tp)))


async def updater(kernel: Kernel, map_fd: int) -> None:
    """Change the element, delete it, and close the map."""
    checked("update", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(SECOND)))
    await bpf_map_delete_elem(kernel, map_fd, u32(0))
    await close(kernel, map_fd)


@kernel_workload(cpus=3, tasks_rcu=True)
async def sleepable_vs_nonsleepable(kernel: Kernel, *, map_type: MapType = "hash") -> None:
    kind, flags = MAPS[map_type]
    map_fd = checked("map", await bpf_create_map(kernel, kind, 4, 4, 1, flags))
    checked("first value", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(FIRST)))
    function = traced_function(kernel, FUNCTION, busy)
    tp = tracepoint(kernel, "sys_enter")
    await load_both(kernel, map_fd)
    tasks = [
        await task(kernel, sleeper, kernel, function, name="sleeper"),
        await task(kernel, passer_by, kernel, tp, name="passer_by"),
        await task(kernel, updater, kernel, map_fd, name="updater"),
    ]
    for thread in tasks:
        await join(thread)
