"""fs/anon_inodes.c (v5.10): a descriptor for an object that is no file

Not modelled: the inode; the limit on open files of the whole system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kernel_model.linux.errno import ENOMEM
from kernel_model.linux.file import (
    FMODE_BOTH,
    FdTable,
    File,
    FileOperations,
    fd_install,
    get_unused_fd_flags,
)
from kernel_model.linux.slab import kzalloc
from sim.macros import rmw

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel
    from sim.cells import Struct


async def put_unused_fd(kernel: Kernel, fd: int) -> None:
    """Give a descriptor back that has had no file."""
    await rmw(kernel.subsystem(FdTable).open_fds, "and", ~(1 << fd), "put_unused_fd")


async def _anon_inode_prime(
    kernel: Kernel, fops: FileOperations, priv: Struct, f_mode: int = FMODE_BOTH
) -> tuple[int, File] | int:
    """A descriptor and a file that nobody sees before fd_install(), or -errno."""
    fd = await get_unused_fd_flags(kernel)
    if fd < 0:
        return fd
    file = await kzalloc(kernel, File, fops, priv, f_mode)
    if file is None:
        await put_unused_fd(kernel, fd)
        return -ENOMEM
    return fd, file


anon_inode_prime: Final = _anon_inode_prime  # by its other name: no frame in modelled stacks


async def anon_inode_getfd(
    kernel: Kernel, fops: FileOperations, priv: Struct, f_mode: int = FMODE_BOTH
) -> int:
    """A new descriptor of a new file, or -errno; the caller's reference to `priv` goes with it."""
    primer = await anon_inode_prime(kernel, fops, priv, f_mode)
    if isinstance(primer, int):
        return primer
    await fd_install(kernel, *primer)
    return primer[0]
