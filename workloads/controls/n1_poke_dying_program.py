"""May a slot change while a program that tail-calls through it is on its way out, and runs?

Covers: updates of a prog array that meet a program without a symbol, whose sites stay as they are;
the free of the program that was in the slot, and of the one that jumps to it.
Scenario: a task comes by the caller, which is attached to a raw tracepoint. Meanwhile another task
detaches the caller, which is the last reference to it, and then deletes the slot, which has the
last reference to the target. With entered=fentry (needs tasks_rcu=yes) the caller is attached to a
function instead, together with another program that stays.
Expect: the caller runs to its end, in the target if it is still there for it.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.ftrace import TracedFunction, call_function, traced_function
from kernel_model.bpf.hooks import Tracepoint, bpf_raw_tracepoint_attach, trace, tracepoint
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
)
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf_create_map, bpf_map_delete_elem, bpf_map_update_elem, close, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, outcome
from workloads.trampoline_update import FUNCTION, RETURN, attach, busy

Entered = Literal["raw_tracepoint", "fentry"]

TRACEPOINT = "sys_enter"
JUMPED, MISSED = 1, 99
TARGET = "r6 = {value}\nr0 = r6\nexit"
CALLER = """
    r6 = r1
    r2 = map[progs]
    r3 = 0
    call bpf_tail_call
    r0 = {value}
    exit
"""


async def load(kernel: Kernel, entered: Entered, code: str, value: int, **maps: int) -> int:
    """A descriptor of a program that returns `value`; at the entry of a function only 0 will do."""
    fentry = entered == "fentry"
    log = bytearray()
    fd = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING if fentry else BPF_PROG_TYPE_RAW_TRACEPOINT,
        assemble(code.format(value=0 if fentry else value), maps),
        name="caller" if maps else "target",
        expected_attach_type=BPF_TRACE_FENTRY if fentry else 0,
        attach_to=FUNCTION if fentry else "",
        log_buf=log,
    )
    return checked("program", fd, log)


async def install(kernel: Kernel, entered: Entered) -> tuple[int, int]:
    """The array, and the link of the caller: what is left has no other reference."""
    map_fd = checked("map", await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))
    target = await load(kernel, entered, TARGET, JUMPED)
    checked("install", await bpf_map_update_elem(kernel, map_fd, u32(0), u32(target)))
    await close(kernel, target)
    fd = await load(kernel, entered, CALLER, MISSED, progs=map_fd)
    name = TRACEPOINT if entered == "raw_tracepoint" else ""
    link_fd = checked("link", await bpf_raw_tracepoint_attach(kernel, name, fd))
    await close(kernel, fd)
    return map_fd, link_fd


async def passer_by(kernel: Kernel, tp: Tracepoint, function: TracedFunction) -> None:
    """Come by wherever the caller is."""
    async with syscall(kernel, "sys_getpgid"):
        seen = await trace(kernel, tp, 0)
        await call_function(kernel, function, 1)
    await outcome(tuple(seen))


async def changer(kernel: Kernel, map_fd: int, link_fd: int) -> None:
    """Detach the caller, then empty the slot."""
    await close(kernel, link_fd)
    checked("delete", await bpf_map_delete_elem(kernel, map_fd, u32(0)))


@kernel_workload(cpus=2)
async def n1_poke_dying_program(kernel: Kernel, *, entered: Entered = "raw_tracepoint") -> None:
    tp = tracepoint(kernel, TRACEPOINT)
    function = traced_function(kernel, FUNCTION, busy)
    if entered == "fentry":
        await attach(kernel, "fentry", RETURN)
    map_fd, link_fd = await install(kernel, entered)
    tasks = [
        await task(kernel, passer_by, kernel, tp, function, name="passer_by"),
        await task(kernel, changer, kernel, map_fd, link_fd, name="changer"),
    ]
    for thread in tasks:
        await join(thread)
