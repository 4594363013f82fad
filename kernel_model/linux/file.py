"""fs/file.c and fs/file_table.c, v5.10: open files, and the table that numbers them.

Not modelled: tables that are not shared (a file is always referenced by whoever uses it), their
growth and locking (a number is found and taken without `file_lock`), close-on-exec.  The memory
of a file that has been released is kept, where the kernel frees it after an RCU grace period.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, final

from kernel_model.kernel import Kernel, kernel_function
from kernel_model.linux.errno import EBADF, EMFILE
from kernel_model.linux.refcount import atomic64_dec_and_test, atomic64_inc, atomic64_inc_not_zero
from kernel_model.linux.task import context, kthread
from sim.cells import Cell, Cells, Struct, cell
from sim.macros import READ_ONCE, rmw, smp_load_acquire, smp_store_release, xchg
from sim.threads import Body

FMODE_READ: Final = 1
FMODE_WRITE: Final = 2
FMODE_BOTH: Final = FMODE_READ | FMODE_WRITE
NR_OPEN: Final = 32


class FileOperations(NamedTuple):
    """What kind of file it is, and what happens when the last reference to it goes."""

    name: str
    release: Callable[[Kernel, File], Body]


@final
class File(Struct):
    """An open file.

    f_op, private_data, f_mode  fixed before anyone else sees the file
    f_count                     references: descriptors, and system calls that use it
    """

    KIND = "file"
    f_count: Cell[int] = cell(1)

    def __init__(
        self, f_op: FileOperations, private_data: Struct | None, f_mode: int = FMODE_BOTH
    ) -> None:
        self.f_op: Final = f_op
        self.private_data: Final = private_data
        self.f_mode: Final = f_mode

    def pointers(self) -> Iterator[Struct]:
        """What it belongs to, until it is released."""
        if self.private_data is not None and self.f_count.value > 0:
            yield self.private_data

    def may_be_lost(self) -> bool:
        """Once it has been released its memory is kept, see above."""
        return self.f_count.value == 0


@final
class FdTable(Struct):
    """The descriptors of all tasks: files by number.

    open_fds  bit n: number n is taken
    fd        the file of each number, None while it is not installed
    """

    KIND = "files_struct"
    open_fds: Cell[int] = cell(0)
    fd: Cells[File | None]

    def __init__(self) -> None:
        self.add_cells("fd", NR_OPEN, None)


async def get_unused_fd_flags(kernel: Kernel, flags: int = 0) -> int:
    """Take the lowest number that is free; -EMFILE if there is none."""
    del flags
    table = kernel.subsystem(FdTable)
    while True:
        taken = await READ_ONCE(table.open_fds)
        fd = (~taken & (taken + 1)).bit_length() - 1
        if fd >= NR_OPEN:
            return -EMFILE
        if not await rmw(table.open_fds, "or", 1 << fd, "get_unused_fd_flags") & (1 << fd):
            return fd


async def fd_install(kernel: Kernel, fd: int, file: File) -> None:
    """Publish the file under a number that has been taken; its reference goes with it."""
    await smp_store_release(kernel.subsystem(FdTable).fd[fd], file)


async def fdget(kernel: Kernel, fd: int) -> File | None:
    """A new reference to the file of that number; None if there is none."""
    table = kernel.subsystem(FdTable)
    if not 0 <= fd < NR_OPEN:
        return None
    while (file := await smp_load_acquire(table.fd[fd])) is not None:
        if await atomic64_inc_not_zero(file.f_count):
            return file
    return None


async def get_file(file: File) -> None:
    """One more reference, by somebody who has one."""
    await atomic64_inc(file.f_count)


async def fput(kernel: Kernel, file: File) -> None:
    """Drop a reference; the last one releases the file, before this task is in user mode again."""
    if not await atomic64_dec_and_test(file.f_count):
        return
    ctx = context()
    if ctx.kind == "task" and not ctx.bh_disabled:
        ctx.task_work.append(lambda: ____fput(kernel, file))
    else:
        await kthread(kernel, delayed_fput, kernel, file, kind="kworker")


async def delayed_fput(kernel: Kernel, file: File) -> None:
    """A worker releases what no task can."""
    await ____fput(kernel, file)


@kernel_function
async def ____fput(kernel: Kernel, file: File) -> None:
    """Nobody has the file any more."""
    await file.f_op.release(kernel, file)


async def close_fd(kernel: Kernel, fd: int) -> int:
    """Free the number and drop the reference that belongs to it; -EBADF if there is no file."""
    table = kernel.subsystem(FdTable)
    if not 0 <= fd < NR_OPEN:
        return -EBADF
    file = await xchg(table.fd[fd], None)
    if file is None:
        return -EBADF
    await rmw(table.open_fds, "and", ~(1 << fd), "close_fd")
    await fput(kernel, file)
    return 0


async def exit_files(kernel: Kernel) -> None:
    """Close everything, as the last task of a process does when it exits."""
    taken = await READ_ONCE(kernel.subsystem(FdTable).open_fds)
    for fd in range(taken.bit_length()):
        if taken & (1 << fd):
            await close_fd(kernel, fd)
