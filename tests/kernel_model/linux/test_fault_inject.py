"""Injected failures: by choice, or the one that a task has asked for."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.bpf.uaccess import copy_from_user, copy_to_user, memdup_user
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EFAULT, ENOMEM
from kernel_model.linux.fault_inject import proc_fail_nth_write
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.task import syscall, task
from sim.errors import MisuseError
from sim.macros import join, outcome
from tests.kernel_model.support import Shared, explore


async def attempts(kernel: Kernel) -> str:
    """Six things, of which each can fail: which did."""
    made = await kzalloc(kernel, Shared)
    failed = "1" * (made is None)
    await kfree(kernel, made)
    failed += "2" * (await copy_from_user(kernel, b"abcd", 4) == -EFAULT)
    failed += "3" * (await copy_to_user(kernel, bytearray(4), b"abcd") == -EFAULT)
    data = await memdup_user(kernel, b"abcd", 4)  # allocates, then copies
    failed += {-ENOMEM: "4", -EFAULT: "5"}.get(data, "") if isinstance(data, int) else ""
    made = await kzalloc(kernel, Shared)
    failed += "6" * (made is None)
    await kfree(kernel, made)
    return failed


@pytest.mark.parametrize("n", range(1, 9))
def test_the_nth_of_a_task_fails_and_no_other(n: int) -> None:
    async def fails(kernel: Kernel) -> None:
        async with syscall(kernel):
            proc_fail_nth_write(n)
            await outcome(await attempts(kernel))

    async def is_left_alone(kernel: Kernel) -> None:
        async with syscall(kernel):
            await outcome(await attempts(kernel))

    async def main(kernel: Kernel, shared: Shared) -> None:
        for body in (fails, is_left_alone):
            await join(await task(kernel, body, kernel, name=body.__name__))

    expected = {4: "4", 5: "5"}.get(n, str(n) if n < 7 else "")
    assert explore(main).outcomes == {(expected, "")}


def test_what_is_asked_for_can_be_withdrawn() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            proc_fail_nth_write(1)
            proc_fail_nth_write(0)
            await outcome(await attempts(kernel))

    assert explore(main).outcomes == {("",)}


@pytest.mark.parametrize(("fault", "which"), [("slab", "146"), ("usercopy", "235")])
def test_by_choice_everything_of_a_kind_may_fail(fault: Any, which: str) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await outcome(await attempts(kernel))

    seen = {said for (said,) in explore(main, faults=frozenset({fault})).outcomes}

    assert set("".join(seen)) == set(which)
    assert {"", which} <= seen


def test_only_a_task_can_ask() -> None:
    with pytest.raises(MisuseError):
        proc_fail_nth_write(1)
