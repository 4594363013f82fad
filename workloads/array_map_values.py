"""What does a reader of an array element see while others write the element?

Covers: plain loads and stores of programs, bpf_map_update_elem() and bpf_map_lookup_elem() from
user space with and without BPF_F_LOCK, bpf_spin_lock() in programs.
Scenario: an element has a lock and two numbers that every writer keeps equal. A classifier stores
both, user space updates the element, and user space looks it up. Who takes the element's lock is
a parameter: all of them, only the program, or nobody.
Expect: the accesses race, which the kernel allows, and are reported as data races that decide
nothing; unless everybody takes the lock, look-ups see torn elements. Nothing else is found.
"""

from __future__ import annotations

import struct
from typing import Literal

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_F_LOCK, BPF_MAP_CREATE, BPF_MAP_TYPE_ARRAY, MapCreateAttr
from kernel_model.bpf.hooks import ClsBpfHead, classifier, cls_bpf_change, sch_handle_ingress
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_SCHED_CLS
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import bpf, bpf_map_lookup_elem, bpf_map_update_elem, u32
from kernel_model.workload import checked, kernel_workload
from sim.macros import join, outcome

Locking = Literal["nobody", "program", "everybody"]

ELEMENT = struct.Struct("<I4xQQ")  # struct bpf_spin_lock; two numbers
FIRST, BY_USER, BY_PROGRAM = 1, 2, 3

STORE_BOTH = f"""
    w1 = 0
    *(u32 *)(r10 -4) = r1
    r2 = r10
    r2 += -4
    r1 = map[values]
    call bpf_map_lookup_elem
    if r0 == 0x0 goto out
    r6 = r0
    LOCK
    r1 = {BY_PROGRAM}
    *(u64 *)(r6 +8) = r1
    *(u64 *)(r6 +16) = r1
    UNLOCK
out:
    r0 = 0
    exit
"""


def store_both(*, locked: bool) -> str:
    """The classifier's program, with or without the lock."""
    lock, unlock = "r1 = r6\n call bpf_spin_lock", "r1 = r6\n call bpf_spin_unlock"
    return STORE_BOTH.replace("UNLOCK", unlock * locked).replace("LOCK", lock * locked)


async def packet(kernel: Kernel, head: ClsBpfHead) -> None:
    """A packet arrives, and the classifier stores both numbers."""
    async with syscall(kernel, "netif_receive_skb"):
        await sch_handle_ingress(kernel, head, bytes(64))


async def writer(kernel: Kernel, fd: int, flags: int) -> None:
    """User space writes both numbers."""
    element = ELEMENT.pack(0, BY_USER, BY_USER)
    checked("update", await bpf_map_update_elem(kernel, fd, u32(0), element, flags))


async def looker(kernel: Kernel, fd: int, flags: int) -> None:
    """User space looks the element up."""
    element = await bpf_map_lookup_elem(kernel, fd, u32(0), flags)
    assert isinstance(element, bytes)
    _, a, b = ELEMENT.unpack(element)
    await outcome(f"torn: {a} {b}" if a != b else f"whole: {a}")


@kernel_workload()
async def array_map_values(kernel: Kernel, *, locking: Locking = "nobody") -> None:
    create = MapCreateAttr(
        map_type=BPF_MAP_TYPE_ARRAY,
        key_size=4,
        value_size=ELEMENT.size,
        max_entries=1,
        spin_lock_off=0,
    )
    fd = checked("map", await bpf(kernel, BPF_MAP_CREATE, create))
    element = ELEMENT.pack(0, FIRST, FIRST)
    checked("first element", await bpf_map_update_elem(kernel, fd, u32(0), element))

    head = classifier(kernel)
    insns = assemble(store_both(locked=locking != "nobody"), {"values": fd})
    log = bytearray()
    prog_type = BPF_PROG_TYPE_SCHED_CLS
    prog_fd = await bpf_load_program(kernel, prog_type, insns, name="store_both", log_buf=log)
    checked("program", prog_fd, log)
    async with syscall(kernel, "tc"):
        checked("filter", await cls_bpf_change(kernel, head, prog_fd))

    flags = BPF_F_LOCK if locking == "everybody" else 0
    tasks = [
        await task(kernel, packet, kernel, head, name="packet"),
        await task(kernel, writer, kernel, fd, flags, name="writer"),
        await task(kernel, looker, kernel, fd, flags, name="looker"),
    ]
    for thread in tasks:
        await join(thread)
