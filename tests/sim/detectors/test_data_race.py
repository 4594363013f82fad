"""Conflicting accesses race exactly when one is plain and no synchronisation orders them."""

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import ops
from sim.detectors.data_race import DataRace
from sim.detectors.happens_before import HappensBefore
from sim.events import Detector, Event
from sim.macros import (
    READ_ONCE,
    WRITE_ONCE,
    atomic_inc,
    atomic_inc_not_zero,
    cmpxchg,
    load,
    load_at,
    lock,
    smp_load_acquire,
    smp_store_release,
    store,
    store_at,
    trylock,
    unlock,
    wait_until,
)
from sim.memory import Memory
from sim.strategies.random_walk import RandomWalk
from tests.programs.code import Program
from tests.programs.drawing import Features, programs
from tests.programs.running import Scripted, execute
from tests.sim.detectors.oracle import bytes_read, bytes_written, happens_before
from tests.sim.detectors.support import Task, World, explore, run, text, threads

FAST = settings(max_examples=150, derandomize=True, deadline=None, database=None)


async def plain_read(world: World) -> None:
    await load(world.board.x)


async def marked_read(world: World) -> None:
    await READ_ONCE(world.board.x)


async def plain_write(world: World) -> None:
    await store(world.board.x, 1)


async def marked_write(world: World) -> None:
    await WRITE_ONCE(world.board.x, 1)


async def atomic(world: World) -> None:
    await atomic_inc(world.board.x)


async def failed(world: World) -> None:
    await cmpxchg(world.board.x, 99, 1)


TASKS = [plain_read, marked_read, plain_write, marked_write, atomic, failed]
RACING = {
    ("plain_read", "plain_write"),
    ("marked_write", "plain_read"),
    ("atomic", "plain_read"),
    ("marked_read", "plain_write"),
    ("marked_write", "plain_write"),
    ("atomic", "plain_write"),
    ("failed", "plain_write"),
}


@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.combinations(TASKS, 2)),
    ids=lambda task: task.__name__,
)
def test_who_races_with_whom(first: Task, second: Task) -> None:
    report = explore(threads(first, second))

    names = tuple(sorted((first.__name__, second.__name__)))
    if names in RACING:
        assert report.titles == [f"BUG: KCSAN: data-race in {names[0]} / {names[1]}"]
        assert report.noticed == report.executions, "whichever comes first"
        assert report.only.decides
        assert not report.only.fatal
    else:
        assert report.titles == []


def test_both_sides_are_told_as_kcsan_does() -> None:
    report = explore(threads(plain_read, marked_write))

    where = f"to 0x{World().board.x.addr:016x} of 8 bytes"
    assert sorted(
        re.sub(r"step \d+", "step n", line) for line in text(report.only).splitlines()
    ) == [
        " marked_write",
        " plain_read",
        "The place is board.0.x",
        f"read {where} by task plain_read at step n:",
        f"write (marked) {where} by task marked_write at step n:",
    ]


def test_a_lock_orders_plain_accesses() -> None:
    async def counts(world: World) -> None:
        await lock(world.board.left)
        await store(world.board.x, await load(world.board.x) + 1)
        await unlock(world.board.left)

    async def tries(world: World) -> None:
        if await trylock(world.board.left):
            await store(world.board.x, 5)
            await unlock(world.board.left)

    assert explore(threads(counts, tries)).titles == []


def test_two_locks_order_nothing() -> None:
    async def left(world: World) -> None:
        await lock(world.board.left)
        await store(world.board.x, 1)
        await unlock(world.board.left)

    async def right(world: World) -> None:
        await lock(world.board.right)
        await store(world.board.x, 2)
        await unlock(world.board.right)

    assert explore(threads(left, right)).titles == ["BUG: KCSAN: data-race in left / right"]


@pytest.mark.parametrize("released", [True, False])
def test_publishing(released: bool) -> None:
    async def writer(world: World) -> None:
        await store(world.board.x, 1)
        publish = smp_store_release if released else WRITE_ONCE
        await publish(world.board.y, 1)

    async def reader(world: World) -> None:
        if await smp_load_acquire(world.board.y):
            await load(world.board.x)

    titles = explore(threads(writer, reader)).titles

    assert titles == ([] if released else ["BUG: KCSAN: data-race in reader / writer"])


def test_waiting_acquires_and_is_marked() -> None:
    async def writer(world: World) -> None:
        await store(world.board.x, 1)
        await smp_store_release(world.board.y, 1)

    async def waiter(world: World) -> None:
        await wait_until(lambda y: y == 1, world.board.y)
        await load(world.board.x)

    async def careless(world: World) -> None:
        await store(world.board.y, 1)

    assert explore(threads(writer, waiter)).titles == []
    assert "BUG: KCSAN: data-race in careless / waiter" in explore(threads(waiter, careless)).titles


def test_an_inc_not_zero_that_fails_only_reads() -> None:
    async def tries(world: World) -> None:
        await atomic_inc_not_zero(world.board.x)

    assert explore(threads(plain_read, tries)).titles == []


@pytest.mark.parametrize(
    ("one", "other", "races"),
    [
        ((0, 8), (4, 4), True),
        ((0, 4), (4, 4), False),
        ((3, 1), (0, 4), True),
        ((6, 2), (8, 8), False),
    ],
)
def test_regions_race_byte_by_byte(
    one: tuple[int, int], other: tuple[int, int], races: bool
) -> None:
    async def writer(world: World) -> None:
        await store(world.board.data.word(*one), 1)

    async def by_address(world: World) -> None:
        await store_at(world.board.data.addr + other[0], other[1], 1)

    async def reader(world: World) -> None:
        await load(world.board.data.word(*other))

    assert bool(explore(threads(writer, by_address)).titles) is races
    assert bool(explore(threads(writer, reader)).titles) is races


def test_an_address_and_a_field_are_one_place() -> None:
    async def by_address(world: World) -> None:
        await load_at(world.board.x.addr, 4)

    report = explore(threads(plain_write, by_address))

    assert report.titles == ["BUG: KCSAN: data-race in by_address / plain_write"]
    assert "The place is board.0.x" in text(report.only)


@pytest.mark.parametrize(
    ("place", "reason"),
    [("racy", "a statistic"), ("stats", "counted without a lock")],
)
def test_races_that_are_allowed_decide_nothing(place: str, reason: str) -> None:
    async def count(world: World) -> None:
        where = getattr(world.board, place)
        where = where.word(0) if place == "stats" else where
        await store(where, await load(where) + 1)

    async def show(world: World) -> None:
        await load_at(getattr(world.board, place).addr, 8)

    report = explore(threads(count, show))

    assert report.titles == ["BUG: KCSAN: data-race in count / show (allowed by design)"]
    assert not report.only.decides
    assert f"Allowed by design: {reason}" in text(report.only)


def test_a_pair_is_reported_once_per_execution() -> None:
    async def writes(world: World) -> None:
        for value in range(5):
            await store(world.board.x, value)
            await smp_store_release(world.board.y, value)

    async def reads(world: World) -> None:
        for _ in range(5):
            await load(world.board.x)
            await smp_load_acquire(world.board.y)

    for seed in range(20):
        strategy = RandomWalk(seed)
        strategy.begin()
        findings = run(threads(writes, reads), strategy).findings
        assert (
            len([f for f in findings if f.title.endswith("reads / writes")]) == len(findings) == 1
        )


# -- against the definition ------------------------------------------------------------------------


def racing(events: Sequence[Event]) -> bool:
    """Whether two accesses race, by definition."""
    before = happens_before(events)
    accesses = [
        (at, event.thread, event.op.order == ops.PLAIN, set(bytes_written(event)), touched(event))
        for at, event in enumerate(events)
        if event.fault is None
    ]
    return any(
        thread is not other_thread
        and (plain or other_plain)
        and (written & other_touched or other_written & all_bytes)
        and at not in before[other_at]
        for at, thread, plain, written, all_bytes in accesses
        for other_at, other_thread, other_plain, other_written, other_touched in accesses
        if at < other_at
    )


def touched(event: Event) -> set[int]:
    return set(bytes_read(event)) | set(bytes_written(event))


@FAST
@given(programs(Features(locks=False)), st.integers(0, 99))
def test_races_are_found_by_definition(program: Program, seed: int) -> None:
    def detectors(memory: Memory) -> list[Detector]:
        order = HappensBefore()
        return [order, DataRace(order, memory)]

    run = execute(program, Scripted(seed=seed), detectors)

    assert bool(run.execution.findings) is racing(run.events)
