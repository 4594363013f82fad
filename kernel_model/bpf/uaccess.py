"""include/linux/uaccess.h, mm/util.c (v5.10): buffers of user space (see `kernel_model.bpf.attr`)

A copy faults if that is injected ("usercopy"), and so ("slab") there may be no memory for the
kernel's copy, which is private to the task and no modelled memory.

Not modelled: a copy that sleeps until the page is there; partial copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.linux.errno import EFAULT, ENOMEM
from kernel_model.linux.fault_inject import should_fail
from kernel_model.linux.task import might_fault, might_sleep

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


async def kmalloc_buffer(kernel: Kernel) -> bool:
    """Whether there is memory for a private buffer."""
    await might_sleep()
    return not await should_fail(kernel, "slab", "kmalloc")


async def copy_from_user(kernel: Kernel, src: bytes | bytearray | None, size: int) -> bytes | int:
    """What `src` points to, or -EFAULT."""
    await might_fault()
    if src is None or len(src) < size:
        return -EFAULT
    if await should_fail(kernel, "usercopy", "copy_from_user"):
        return -EFAULT
    return bytes(src[:size])


async def copy_to_user(kernel: Kernel, dst: bytes | bytearray | None, src: bytes) -> int:
    """Write to where `dst` points: 0 or -EFAULT."""
    await might_fault()
    if not isinstance(dst, bytearray):
        return -EFAULT
    if await should_fail(kernel, "usercopy", "copy_to_user"):
        return -EFAULT
    dst[: len(src)] = src
    return 0


async def memdup_user(kernel: Kernel, src: bytes | bytearray | None, size: int) -> bytes | int:
    """A private copy of what `src` points to, or -errno."""
    if not await kmalloc_buffer(kernel):
        return -ENOMEM
    return await copy_from_user(kernel, src, size)
