"""Are tasks safe in a trampoline while programs are attached to it, detached and freed?

Covers: bpf_trampoline_update() and what it waits for, programs that may sleep and programs that may
not in one trampoline, the function itself called from it (kind=fexit), the end of links, programs
and the trampoline.
Scenario: callers call a traced function, which sleeps or not. A sleepable program and one that is
not are attached to it before (each with its own descriptor). An updater attaches further programs
one after another (`updates`), and detaches and frees each again; at last (teardown=yes) it detaches
and frees the first two as well.
Expect: everybody who executes the trampoline or a program finds there what it has entered.
"""

from __future__ import annotations

from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.ftrace import TracedFunction, call_function, traced_function
from kernel_model.bpf.helpers import UserMemory
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_F_SLEEPABLE,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.kernel import Kernel
from kernel_model.linux.task import sleeping, syscall, task
from kernel_model.uapi import close
from kernel_model.workload import checked, kernel_workload
from sim.macros import join

Kind = Literal["fentry", "fexit"]

FUNCTION = "__x64_sys_getpgid"
RETURN = "r0 = 0\nexit"
COPY = """
    r1 = r10
    r1 += -8
    r2 = 8
    r3 = {addr} ll
    call bpf_copy_from_user
    r0 = 0
    exit
"""


async def busy(kernel: Kernel, pid: int) -> int:
    """A function that does not sleep."""
    del kernel
    return pid


async def sleepy(kernel: Kernel, pid: int) -> int:
    """A function that sleeps."""
    del kernel
    async with sleeping("schedule"):
        pass
    return pid


async def attach(kernel: Kernel, kind: Kind, code: str, *flags: int) -> tuple[int, int]:
    """Load a program for the function, and attach it: two descriptors."""
    attach_type = BPF_TRACE_FENTRY if kind == "fentry" else BPF_TRACE_FEXIT
    fd = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING,
        assemble(code),
        name="sleepable" if flags else "plain",
        flags=sum(flags),
        expected_attach_type=attach_type,
        attach_to=FUNCTION,
    )
    checked("program", fd)
    return fd, checked("link", await bpf_raw_tracepoint_attach(kernel, "", fd))


async def caller(kernel: Kernel, function: TracedFunction, runs: int) -> None:
    """Call the function."""
    for _ in range(runs):
        async with syscall(kernel, "sys_getpgid"):
            await call_function(kernel, function, 1)


async def updater(kernel: Kernel, kind: Kind, updates: int, fds: tuple[int, ...]) -> None:
    """Attach programs, and let them and the others go."""
    for _ in range(updates):
        prog_fd, link_fd = await attach(kernel, kind, RETURN)
        await close(kernel, link_fd)
        await close(kernel, prog_fd)
    for fd in fds:
        await close(kernel, fd)


@kernel_workload(cpus=3, tasks_rcu=True)
async def trampoline_update(
    kernel: Kernel,
    *,
    kind: Kind = "fentry",
    sleeps: bool = False,
    sleepable: bool = True,
    plain: bool = True,
    callers: int = 2,
    runs: int = 1,
    updates: int = 1,
    teardown: bool = True,
) -> None:
    function = traced_function(kernel, FUNCTION, sleepy if sleeps else busy)
    memory = UserMemory(kernel, bytes(8))
    fds: list[int] = []
    if sleepable:
        code = COPY.format(addr=memory.addr)
        fds += reversed(await attach(kernel, kind, code, BPF_F_SLEEPABLE))
    if plain:
        fds += reversed(await attach(kernel, kind, RETURN))
    tasks = [
        await task(kernel, caller, kernel, function, runs, name=f"caller{i}")
        for i in range(callers)
    ]
    left = tuple(fds) if teardown else ()
    tasks.append(await task(kernel, updater, kernel, kind, updates, left, name="updater"))
    for thread in tasks:
        await join(thread)
