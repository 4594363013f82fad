"""Circles of waiting threads, and threads that wait for nobody."""

from sim.cells import Cell
from sim.cpu import Cpu
from sim.macros import (
    WRITE_ONCE,
    cpu_hold,
    cpu_release,
    join,
    lock,
    section_begin,
    store,
    trylock,
    unlock,
    wait_until,
)
from sim.sections import Section
from sim.threads import Thread, spawn
from tests.sim.detectors.support import (
    Reading,
    World,
    explore,
    synchronize_rcu,
    text,
    threads,
)


async def both(first: Cell[Thread | None], second: Cell[Thread | None]) -> None:
    await lock(first, "mutex_lock")
    await lock(second, "mutex_lock")
    await unlock(second, "mutex_unlock")
    await unlock(first, "mutex_unlock")


async def left_first(world: World) -> None:
    await both(world.board.left, world.board.right)


async def right_first(world: World) -> None:
    await both(world.board.right, world.board.left)


async def also_left_first(world: World) -> None:
    await both(world.board.left, world.board.right)


def test_locks_in_opposite_order() -> None:
    report = explore(threads(left_first, right_first))

    assert report.titles == [
        "BUG: deadlock: left_first (mutex_lock) -> right_first (mutex_lock) -> left_first"
    ]
    assert report.only.threads == ("left_first", "right_first")
    assert text(report.only).splitlines() == [
        "The circle:",
        " left_first waits for board.0.right (mutex_lock), held by right_first",
        " which waits for board.0.left (mutex_lock), held by left_first",
        "task:left_first state:D",
        " Call Trace:",
        " both",
        " left_first",
        "task:right_first state:D",
        " Call Trace:",
        " both",
        " right_first",
    ]


def test_locks_in_one_order() -> None:
    assert explore(threads(left_first, also_left_first)).titles == []


def test_a_grace_period_is_a_link_like_any_other() -> None:
    async def updater(world: World) -> None:
        await lock(world.board.left, "mutex_lock")
        await synchronize_rcu(world)
        await unlock(world.board.left)

    async def reader(world: World) -> None:
        async with Reading(world):
            await lock(world.board.left, "mutex_lock")
            await unlock(world.board.left)

    report = explore(threads(updater, reader))

    assert report.titles == [
        "BUG: deadlock: reader (mutex_lock) -> updater (synchronize_rcu) -> reader"
    ]
    assert text(report.only).splitlines()[1:3] == [
        " reader waits for board.0.left (mutex_lock), held by updater",
        " which waits for the grace period of rcu (synchronize_rcu), waiting for the section of"
        " reader",
    ]


def test_waiting_for_oneself() -> None:
    async def relocks(world: World) -> None:
        await lock(world.board.left)
        await lock(world.board.left)

    async def waits_inside(world: World) -> None:
        async with Reading(world):
            await synchronize_rcu(world)

    assert explore(threads(relocks)).titles == ["BUG: deadlock: relocks (lock) -> relocks"]
    assert explore(threads(waits_inside)).titles == [
        "BUG: deadlock: waits_inside (synchronize_rcu) -> waits_inside"
    ]


def test_joining_and_cpus_are_links_too() -> None:
    async def main(world: World) -> None:
        cpu = world.memory.static(Cpu, 0)

        async def holder() -> None:
            await cpu_hold(cpu, "preempt_disable")
            neighbour = await spawn(beside, cpu=cpu, name="neighbour")
            await join(neighbour)
            await cpu_release(cpu, "preempt_enable")

        async def beside() -> None:
            await WRITE_ONCE(world.board.x, 1)

        await spawn(holder, name="holder", cpu=cpu)

    report = explore(main)

    assert report.titles == ["BUG: deadlock: holder (join) -> neighbour (WRITE_ONCE) -> holder"]
    assert text(report.only).splitlines()[1:3] == [
        " holder waits for the end of neighbour (join)",
        " which waits for the CPU to go on with WRITE_ONCE, held by holder",
    ]


def test_who_waits_behind_a_circle_is_told() -> None:
    async def main(world: World) -> None:
        started = [await spawn(task, world) for task in (left_first, right_first)]
        for thread in started:
            await join(thread)

    report = explore(main)

    assert "main waits behind them for join" in text(report.only)


def test_two_circles_are_two_findings() -> None:
    async def relocks(world: World) -> None:
        await lock(world.board.left)
        await lock(world.board.left)

    async def relocks_too(world: World) -> None:
        await lock(world.board.right)
        await lock(world.board.right)

    assert explore(threads(relocks, relocks_too)).titles == [
        "BUG: deadlock: relocks (lock) -> relocks",
        "BUG: deadlock: relocks_too (lock) -> relocks_too",
    ]


def test_a_lost_wake_up() -> None:
    async def waiter(world: World) -> None:
        await wait_until(lambda x: x == 1, world.board.x, name="wait_event")

    async def flickers(world: World) -> None:
        await WRITE_ONCE(world.board.x, 1)
        await WRITE_ONCE(world.board.x, 2)

    report = explore(threads(waiter, flickers))

    assert report.titles == ["INFO: task waiter blocked forever (lost wake-up)"]
    assert 0 < report.noticed < report.executions
    assert text(report.only).splitlines()[:2] == [
        "wait_event waits for a change of",
        " board.0.x = 2",
    ]


def test_a_lock_whose_holder_has_ended() -> None:
    async def forgets(world: World) -> None:
        await trylock(world.board.left)

    async def waits(world: World) -> None:
        await wait_until(lambda held: held is not None, world.board.left)
        await lock(world.board.left, "mutex_lock")

    report = explore(threads(forgets, waits))

    assert report.titles == [
        "INFO: task waits blocked forever (board.0.left (mutex_lock), held by forgets, which has"
        " ended)"
    ]


def test_a_section_of_a_thread_that_was_never_started() -> None:
    async def main(world: World) -> None:
        await section_begin(world.rcu, Section("callback", 0), "call_rcu")
        await synchronize_rcu(world)

    assert explore(main).titles == ["INFO: task main blocked forever (synchronize_rcu)"]


def test_a_program_that_ends_is_silent() -> None:
    async def sets(world: World) -> None:
        await store(world.board.x, 1)

    async def waits(world: World) -> None:
        await wait_until(lambda x: x == 1, world.board.x)

    titles = explore(threads(sets, waits)).titles

    assert titles == ["BUG: KCSAN: data-race in sets / waits"]
