"""Is replacing an inner map safe while a program that has found it sleeps?

Covers: maps of maps in sleepable programs, bpf_copy_from_user(), Tasks Trace RCU.
Scenario: as in inner_map_replace, but the program is sleepable: between finding the inner map's
element and reading it, it copies from user memory, which may sleep.
Expect: refused at load where sleepable programs may not use maps of maps (before v5.12). Where
they may, a reader sees a value of one of the inner maps, or none, and nobody touches freed memory.
"""

from __future__ import annotations

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.helpers import UserMemory
from kernel_model.bpf.hooks import (
    SleepableHook,
    attach_sleepable,
    call_sleepable,
    detach_sleepable,
    sleepable_hook,
)
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_F_SLEEPABLE, BPF_MODIFY_RETURN, BPF_PROG_TYPE_TRACING
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import close
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, outcome
from workloads.inner_map_replace import MISSING, Outer, new_outer_map, updater

TRACED = "__x64_sys_getpgid"

# r6 is the argument, a user address; r7 points to the element while the program sleeps.
LOOKUP_AND_SLEEP = """
    r6 = *(u64 *)(r1 +0)
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
    r7 = r0
    r1 = r10
    r1 += -8
    w2 = 4
    r3 = r6
    call bpf_copy_from_user
    r0 = *(u32 *)(r7 +0)
    exit
missing:
    w0 = -1
    exit
"""


async def load_lookup(kernel: Kernel, outer_fd: int) -> int:
    """A descriptor of the program."""
    log = bytearray()
    fd = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING,
        assemble(LOOKUP_AND_SLEEP, {"outer": outer_fd}),
        name="lookup",
        flags=BPF_F_SLEEPABLE,
        expected_attach_type=BPF_MODIFY_RETURN,
        attach_to=TRACED,
        log_buf=log,
    )
    return checked("sleepable program", fd, log)


async def reader(kernel: Kernel, hook: SleepableHook, user_ptr: int, runs: int) -> None:
    """Make system calls, each of which passes the program."""
    seen = []
    for _ in range(runs):
        async with syscall(kernel, "getpgid"):
            value = await call_sleepable(kernel, hook, user_ptr)
        seen.append("none" if value == MISSING else value)
    await outcome(tuple(seen))


@kernel_workload()
async def inner_map_replace_sleepable(
    kernel: Kernel,
    *,
    outer: Outer = "array",
    readers: int = 1,
    runs: int = 1,
    updates: int = 1,
    teardown: bool = False,
) -> None:
    outer_fd, fresh = await new_outer_map(kernel, outer, updates)

    hook = sleepable_hook(kernel, TRACED)
    prog_fd = await load_lookup(kernel, outer_fd)
    async with syscall(kernel, "bpf"):
        checked("attach", await attach_sleepable(kernel, hook, prog_fd))

    user = UserMemory(kernel, b"user")
    tasks = [
        await task(kernel, reader, kernel, hook, user.addr, runs, name=f"reader{i}")
        for i in range(readers)
    ]
    tasks.append(await task(kernel, updater, kernel, outer_fd, fresh, name="updater"))
    for thread in tasks:
        await join(thread)
    if teardown:
        async with syscall(kernel, "bpf"):
            await detach_sleepable(kernel, hook)
        for fd in (prog_fd, outer_fd):
            await close(kernel, fd)
