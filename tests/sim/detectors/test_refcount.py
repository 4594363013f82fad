"""Reference counters below 0, up from 0 and beyond what they can hold."""

import pytest

from kernel_model.linux.refcount import (
    atomic64_dec,
    atomic64_inc_not_zero,
    refcount_dec_and_test,
    refcount_inc,
    refcount_inc_not_zero,
)
from sim.macros import WRITE_ONCE, atomic_dec, rmw
from tests.sim.detectors.support import World, explore, text, threads


async def gets(world: World) -> None:
    await refcount_inc(world.board.x)


async def puts(world: World) -> None:
    await refcount_dec_and_test(world.board.x)


async def tries(world: World) -> None:
    await refcount_inc_not_zero(world.board.x)
    await atomic64_inc_not_zero(world.board.y)


async def puts_64(world: World) -> None:
    await atomic64_dec(world.board.y)


async def counts_down(world: World) -> None:
    await atomic_dec(world.board.x)


def test_addition_on_zero() -> None:
    report = explore(threads(gets))

    assert report.titles == ["WARNING: refcount_t: addition on 0; use-after-free in gets"]
    assert text(report.only).splitlines() == [
        "refcount_inc by task gets, the count was 0",
        "The buggy address is board.0.x",
        "Call Trace:",
        " gets",
    ]
    assert not report.only.fatal


def test_underflow_names_the_caller_of_the_helper() -> None:
    assert explore(threads(puts)).titles == [
        "WARNING: refcount_t: underflow; use-after-free in puts"
    ]
    assert explore(threads(puts_64)).titles == [
        "WARNING: atomic64_t: underflow; use-after-free in puts_64"
    ]


def test_a_careful_get_and_a_plain_counter_are_silent() -> None:
    assert explore(threads(tries, counts_down)).titles == []


def test_one_reference_two_puts() -> None:
    async def puts_too(world: World) -> None:
        await refcount_dec_and_test(world.board.x)

    async def main(world: World) -> None:
        await WRITE_ONCE(world.board.x, 1)
        await threads(puts, puts_too)(world)

    assert explore(main).titles == [
        "WARNING: refcount_t: underflow; use-after-free in puts",
        "WARNING: refcount_t: underflow; use-after-free in puts_too",
    ]


@pytest.mark.parametrize(
    ("name", "start", "argument", "expected"),
    [
        ("refcount_inc", 2**31 - 1, 1, "saturated; leaking memory"),
        ("refcount_inc", 2**31 - 2, 1, ""),
        ("atomic64_inc", 2**31 - 1, 1, ""),
        ("refcount_dec", 1, -1, "decrement hit 0; leaking memory"),
        ("refcount_dec_and_test", 1, -1, ""),
        ("refcount_sub_and_test", 1, -2, "underflow; use-after-free"),
    ],
)
def test_limits(name: str, start: int, argument: int, expected: str) -> None:
    async def changes(world: World) -> None:
        await WRITE_ONCE(world.board.x, start)
        await rmw(world.board.x, "add", argument, name)

    kind = name.partition("_")[0] + "_t"
    assert explore(threads(changes)).titles == (
        [f"WARNING: {kind}: {expected} in changes"] if expected else []
    )
