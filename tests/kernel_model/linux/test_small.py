"""Error numbers, reference counters, allocation."""

from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux import errno
from kernel_model.linux.errno import errno_name
from kernel_model.linux.preempt import preempt_disable
from kernel_model.linux.refcount import (
    atomic64_dec,
    atomic64_dec_and_test,
    atomic64_inc,
    atomic64_inc_not_zero,
    refcount_dec_and_test,
    refcount_inc,
    refcount_inc_not_zero,
)
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.task import syscall
from sim import ops
from sim.macros import load, outcome
from tests.kernel_model.support import Shared, explore


def test_errno_names() -> None:
    assert [errno_name(n) for n in (errno.EINVAL, -errno.EINVAL, 524, 95, 7)] == [
        "EINVAL",
        "EINVAL",
        "ENOTSUPP",
        "EOPNOTSUPP",
        "E2BIG",
    ]
    assert errno_name(-4095) == "4095"


def test_errno_numbers_are_those_of_this_machine() -> None:
    """Where the C library knows them: ENOTSUPP never leaves the kernel officially."""
    import errno as host  # noqa: PLC0415  # only here is the other one needed

    names = {name for name in vars(errno) if name.startswith("E")} - {"ENOTSUPP"}
    assert {name: vars(errno)[name] for name in names} == {
        name: getattr(host, name) for name in names
    }


@pytest.mark.parametrize(
    ("inc", "inc_not_zero", "dec_and_test"),
    [
        (refcount_inc, refcount_inc_not_zero, refcount_dec_and_test),
        (atomic64_inc, atomic64_inc_not_zero, atomic64_dec_and_test),
    ],
)
def test_counting(inc: Any, inc_not_zero: Any, dec_and_test: Any) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        results = [await inc_not_zero(shared.x)]
        await inc(shared.x)
        results += [await inc_not_zero(shared.x), await dec_and_test(shared.x)]
        results += [await dec_and_test(shared.x), await inc_not_zero(shared.x)]
        await outcome((*results, await load(shared.x)))

    assert explore(main).outcomes == {((False, True, False, True, False, 0),)}


def test_atomic64_dec() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        await atomic64_inc(shared.x)
        await atomic64_dec(shared.x)
        await outcome(await load(shared.x))

    assert explore(main).outcomes == {(0,)}


def test_detectors_recognise_counters_by_name() -> None:
    """The convention of the module: the name, and ("add", n) or ("inc_not_zero", n)."""
    seen: list[Any] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        await refcount_inc(shared.x)
        await refcount_dec_and_test(shared.x)
        await atomic64_inc_not_zero(shared.x)

    explore(
        main,
        observer=lambda event: (
            seen.append((event.op.name, event.op.operand)) if event.op.kind == ops.RMW else None
        ),
    )
    assert seen == [
        ("refcount_inc", ("add", 1)),
        ("refcount_dec_and_test", ("add", -1)),
        ("atomic64_inc_not_zero", ("inc_not_zero", 1)),
    ]


def test_allocation_fails_only_if_asked_to() -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            made = await kzalloc(kernel, Shared)
            await outcome(made is not None)
            await kfree(kernel, made)

    assert explore(main).outcomes == {(True,)}
    assert explore(main, faults=frozenset({"usercopy"})).outcomes == {(True,)}
    assert explore(main, faults=frozenset({"slab"})).outcomes == {(True,), (False,)}


@pytest.mark.parametrize(
    ("gfp", "warns"),
    [("GFP_KERNEL", True), ("GFP_USER", True), ("GFP_ATOMIC", False), ("GFP_NOWAIT", False)],
)
def test_which_allocations_may_sleep(gfp: Any, warns: bool) -> None:
    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            async with preempt_disable():
                await kzalloc(kernel, Shared, gfp=gfp)

    assert bool(explore(main).findings) == warns


def test_a_free_is_called_what_the_caller_calls_it() -> None:
    names: list[str] = []

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await kfree(kernel, await kzalloc(kernel, Shared), "kvfree")
            await kfree(kernel, None)

    explore(
        main,
        observer=lambda event: names.append(event.op.name) if event.op.kind == ops.FREE else None,
    )
    assert names == ["kvfree"]
