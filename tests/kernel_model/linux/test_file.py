"""Descriptors and files: numbers, references, release."""

import pytest

from kernel_model.boot import boot
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EBADF, EMFILE
from kernel_model.linux.file import (
    FMODE_READ,
    NR_OPEN,
    File,
    FileOperations,
    close_fd,
    exit_files,
    fd_install,
    fdget,
    fput,
    get_file,
    get_unused_fd_flags,
)
from kernel_model.linux.preempt import local_bh_disable
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.task import context, kthread, syscall, task
from sim.cells import Struct
from sim.detectors.leak import Leak
from sim.execution import Execution
from sim.hosts import direct
from sim.macros import join, outcome
from sim.memory import Memory
from sim.strategies.replay import Choices
from tests.kernel_model.support import Shared, explore


class Object(Struct):
    """What a file stands for."""

    KIND = "object"


async def release(kernel: Kernel, file: File) -> None:
    await outcome(("released", context().kind, context().in_kernel))
    await kfree(kernel, file.private_data)


FOPS = FileOperations("object", release)
RELEASED = ("released", "task", True)


async def open_object(kernel: Kernel) -> int:
    private = await kzalloc(kernel, Object)
    file = await kzalloc(kernel, File, FOPS, private, FMODE_READ)
    assert file is not None
    fd = await get_unused_fd_flags(kernel)
    await fd_install(kernel, fd, file)
    return fd


async def close(kernel: Kernel, fd: int) -> None:
    async with syscall(kernel):
        result = await close_fd(kernel, fd)
        await outcome(result)


async def use(kernel: Kernel, fd: int) -> None:
    async with syscall(kernel):
        file = await fdget(kernel, fd)
        await outcome("used" if file else "no file")
        if file is not None:
            await fput(kernel, file)


def test_the_lowest_number_is_taken() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            fds = [await open_object(kernel) for _ in range(3)]
            await close_fd(kernel, 1)
            fds.append(await open_object(kernel))
            await outcome(tuple(fds))

    ((fds, _),) = explore(main).outcomes
    assert fds == (0, 1, 2, 1)


def test_a_full_table() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            fds = [await get_unused_fd_flags(kernel) for _ in range(NR_OPEN + 1)]
            await outcome(tuple(fds))

    assert explore(main).outcomes == {((*range(NR_OPEN), -EMFILE),)}


@pytest.mark.parametrize("fd", [-1, 0, 1, NR_OPEN])
def test_a_number_without_a_file(fd: int) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await get_unused_fd_flags(kernel)  # taken, not installed
            await outcome((await fdget(kernel, fd), await close_fd(kernel, fd)))

    assert explore(main).outcomes == {((None, -EBADF),)}


def test_two_tasks_never_get_one_number() -> None:
    async def take(kernel: Kernel) -> None:
        async with syscall(kernel):
            await outcome(await get_unused_fd_flags(kernel))

    async def main(kernel: Kernel, shared: Shared) -> None:
        await task(kernel, take, kernel, name="a")
        await task(kernel, take, kernel, name="b")

    assert explore(main).outcomes == {(0, 1), (1, 0)}


def test_close_releases_once_whoever_is_first() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            fd = await open_object(kernel)
        await task(kernel, close, kernel, fd, name="a")
        await task(kernel, close, kernel, fd, name="b")

    first, second = (0, RELEASED, -EBADF), (-EBADF, 0, RELEASED)
    assert explore(main).outcomes == {first, second}


def test_a_file_in_use_outlives_its_number() -> None:
    """The last reference releases the file: that of the number, or that of the user."""

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            fd = await open_object(kernel)
        await task(kernel, close, kernel, fd, name="closer")
        await task(kernel, use, kernel, fd, name="user")

    explored = explore(main)
    assert explored.outcomes == {
        (0, RELEASED, "no file"),
        (0, RELEASED, "used"),
        (0, "used", RELEASED),
    }
    assert not explored.findings


def test_another_reference_keeps_the_file() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            fd = await open_object(kernel)
            file = await fdget(kernel, fd)
            assert file is not None
            await get_file(file)
            await close_fd(kernel, fd)
            await fput(kernel, file)
            await outcome("still there")
        async with syscall(kernel):
            await fput(kernel, file)

    assert explore(main).outcomes == {("still there", RELEASED)}


def test_release_waits_for_the_end_of_the_system_call() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await close_fd(kernel, await open_object(kernel))
            await outcome("closed")

    assert explore(main).outcomes == {("closed", RELEASED)}


def test_a_worker_releases_for_who_cannot() -> None:
    async def drop(kernel: Kernel, file: File) -> None:
        await fput(kernel, file)

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            file = await fdget(kernel, await open_object(kernel))
            assert file is not None
            await close_fd(kernel, 0)
        await join(await kthread(kernel, drop, kernel, file, kind="softirq"))
        async with syscall(kernel):
            file = await fdget(kernel, await open_object(kernel))
            assert file is not None
            await close_fd(kernel, 0)
            async with local_bh_disable():
                await fput(kernel, file)

    by_worker = ("released", "kworker", True)
    explored = explore(main)
    assert explored.outcomes == {(by_worker, by_worker)}
    assert not explored.findings


def test_exit_closes_everything() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await open_object(kernel)
            await get_unused_fd_flags(kernel)
            await open_object(kernel)
            await exit_files(kernel)

    assert explore(main).outcomes == {(RELEASED, RELEASED)}


@pytest.mark.parametrize(
    ("closed", "freed", "leaked"),
    [(False, False, set()), (True, True, set()), (True, False, {"object#main.0"})],
    ids=["open", "closed", "forgotten"],
)
def test_what_counts_as_leaked(closed: bool, freed: bool, leaked: set[str]) -> None:
    """An open file keeps its object, a released one does not, and is no leak itself."""

    async def releases(kernel: Kernel, file: File) -> None:
        if freed:
            await kfree(kernel, file.private_data)

    async def main(kernel: Kernel) -> None:
        async with syscall(kernel):
            private = await kzalloc(kernel, Object)
            file = await kzalloc(kernel, File, FileOperations("object", releases), private)
            assert file is not None
            fd = await get_unused_fd_flags(kernel)
            await fd_install(kernel, fd, file)
            if closed:
                await close_fd(kernel, fd)

    memory = Memory()
    kernel = boot(memory)
    execution = Execution(lambda: main(kernel), memory, Choices(()), [Leak(memory)])
    direct.run(execution)
    assert {finding.title.split()[-1] for finding in execution.findings} == leaked
