"""include/linux/uaccess.h, mm/util.c (v5.10): buffers of user space (see `kernel_model.bpf.attr`)

Whether a copy faults is a choice under the fault "usercopy", and so is under "slab" whether there
is memory for the kernel's copy, which is private to the task and no modelled memory.

Not modelled: a copy that sleeps until the page is there; partial copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.linux.errno import EFAULT, ENOMEM
from kernel_model.linux.task import might_fault, might_sleep
from sim.macros import choose

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


async def kmalloc_buffer(kernel: Kernel) -> bool:
    """Whether there is memory for a private buffer."""
    await might_sleep()
    return "slab" not in kernel.faults or await choose(2, "kmalloc") == 0


async def copy_from_user(kernel: Kernel, src: bytes | bytearray | None, size: int) -> bytes | int:
    """What `src` points to, or -EFAULT."""
    await might_fault()
    if src is None or len(src) < size:
        return -EFAULT
    if "usercopy" in kernel.faults and await choose(2, "copy_from_user"):
        return -EFAULT
    return bytes(src[:size])


async def copy_to_user(kernel: Kernel, dst: bytes | bytearray | None, src: bytes) -> int:
    """Write to where `dst` points: 0 or -EFAULT."""
    await might_fault()
    if not isinstance(dst, bytearray):
        return -EFAULT
    if "usercopy" in kernel.faults and await choose(2, "copy_to_user"):
        return -EFAULT
    dst[: len(src)] = src
    return 0


async def memdup_user(kernel: Kernel, src: bytes | bytearray | None, size: int) -> bytes | int:
    """A private copy of what `src` points to, or -errno."""
    if not await kmalloc_buffer(kernel):
        return -ENOMEM
    return await copy_from_user(kernel, src, size)
