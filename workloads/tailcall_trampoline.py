"""How many tail calls can one run of a program make while the program is traced?

Covers: the tail-call counter on its way through a trampoline; programs as targets of trampolines,
attached to a function of a program, or to its main function, while the program runs; the end of
their links.
Scenario: a program counts its runs in a map and calls a function of its own, which tail-calls the
program. Callers pass the tracepoint that it is attached to. Meanwhile a tracer loads a program for
that function (or for the main one, function=main), attaches it, and detaches it again, as often as
asked.
Expect: 33 tail calls succeed in each run, and no more; so each adds 34 to the count of the program.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import Tracepoint, bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf_create_map, bpf_map_lookup_elem, bpf_map_update_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, note, outcome
from workloads.tailcall_counter import CODE

Kind = Literal["fentry", "fexit"]
Function = Literal["main", "subprog"]

RUNS = 34  # of the program, in one run of all
KINDS: dict[Kind, int] = {"fentry": BPF_TRACE_FENTRY, "fexit": BPF_TRACE_FEXIT}
FUNCTIONS: dict[Function, int] = {"main": 1, "subprog": 2}


async def attach(kernel: Kernel, fd: int, kind: Kind, function: Function) -> tuple[int, int]:
    """Load a program for a function of another program, and attach it: two descriptors."""
    prog_fd = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING,
        assemble("r0 = 0\nexit"),
        name="watch",
        expected_attach_type=KINDS[kind],
        attach_prog_fd=fd,
        attach_btf_id=FUNCTIONS[function],
    )
    checked("tracing program", prog_fd)
    return prog_fd, checked("link", await bpf_raw_tracepoint_attach(kernel, "", prog_fd))


async def caller(kernel: Kernel, tp: Tracepoint, runs: int) -> None:
    """Make system calls, each of which passes the tracepoint."""
    for _ in range(runs):
        async with syscall(kernel, "sys_enter"):
            await trace(kernel, tp)


async def tracer(kernel: Kernel, fd: int, kind: Kind, function: Function, times: int) -> None:
    """Attach a program and detach it, several times."""
    for _ in range(times):
        prog_fd, link_fd = await attach(kernel, fd, kind, function)
        await close(kernel, link_fd)
        await close(kernel, prog_fd)


@kernel_workload(cpus=2, tasks_rcu=True)
async def tailcall_trampoline(
    kernel: Kernel,
    *,
    kind: Kind = "fentry",
    function: Function = "subprog",
    callers: int = 1,
    runs: int = 2,
    times: int = 1,
) -> None:
    maps = {
        "progs": checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)),
        "runs": checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)),
    }
    tp = tracepoint(kernel, "sys_enter")
    insns = assemble(CODE["subprog"], maps)
    prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
    fd = checked("program", await bpf_load_program(kernel, prog_type, insns, name="again"))
    checked("install", await bpf_map_update_elem(kernel, maps["progs"], u32(0), u32(fd)))
    checked("link", await bpf_raw_tracepoint_attach(kernel, "sys_enter", fd))
    tasks = [
        await task(kernel, caller, kernel, tp, runs, name=f"caller{i}") for i in range(callers)
    ]
    tasks.append(await task(kernel, tracer, kernel, fd, kind, function, times, name="tracer"))
    for thread in tasks:
        await join(thread)
    value = await bpf_map_lookup_elem(kernel, maps["runs"], u32(0))
    assert isinstance(value, bytes)
    count = int.from_bytes(value, "little")
    await outcome(count)
    if count != RUNS * callers * runs:
        await note("violated", "each run makes 33 tail calls")
