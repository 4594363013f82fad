"""Spinning on what nobody is left to change is a livelock; waiting for one's turn is not."""

from sim.cpu import Cpu
from sim.execution import CUT
from sim.macros import (
    READ_ONCE,
    WRITE_ONCE,
    choose,
    cmpxchg,
    cpu_hold,
    cpu_release,
    trylock,
)
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices
from sim.threads import spawn
from tests.sim.detectors.support import Program, Reading, Report, World, run, threads


def walk(program: Program, seed: int = 0) -> Report:
    report = Report()
    strategy = RandomWalk(seed)
    strategy.begin()
    run(program, strategy, report)
    return report


async def spins(world: World) -> None:
    while await READ_ONCE(world.board.x) == 0:
        pass


async def spins_carefully(world: World) -> None:
    while await cmpxchg(world.board.y, 1, 2) == 0:
        async with Reading(world):
            await READ_ONCE(world.board.x)


async def sets(world: World) -> None:
    await WRITE_ONCE(world.board.x, 1)


def test_all_that_can_go_on_are_named() -> None:
    report = walk(threads(spins, spins_carefully))

    assert report.titles == ["INFO: livelock of spins, spins_carefully: nothing changes any more"]
    assert report.only.threads == ("spins", "spins_carefully")


def test_main_may_spin_alone() -> None:
    assert walk(spins).titles == ["INFO: livelock of main: nothing changes any more"]


def test_blocked_threads_do_not_help() -> None:
    async def blocked(world: World) -> None:
        await trylock(world.board.left)
        async with Reading(world):
            while not await trylock(world.board.left):
                pass

    assert walk(threads(blocked)).titles == ["INFO: livelock of blocked: nothing changes any more"]


def test_an_unfair_schedule_is_no_livelock() -> None:
    """The first thread spins until the step limit, though the second could have freed it."""
    strategy = Choices([])
    strategy.begin()
    report = Report()

    execution = run(threads(spins, sets), strategy, report)

    assert execution.state is CUT
    assert report.titles == []


def test_a_fair_schedule_gets_out() -> None:
    assert walk(threads(spins, sets)).titles == []


def test_a_held_cpu_keeps_the_other_from_helping() -> None:
    async def main(world: World) -> None:
        cpu = world.memory.static(Cpu, 0)

        async def holder() -> None:
            await cpu_hold(cpu, "preempt_disable")
            await spawn(sets, world, name="sets", cpu=cpu)
            await spins(world)
            await cpu_release(cpu, "preempt_enable")

        await spawn(holder, name="holder", cpu=cpu)

    assert walk(main).titles == ["INFO: livelock of holder: nothing changes any more"]


def test_long_loops_that_choose_or_write_are_left_alone() -> None:
    async def long(world: World) -> None:
        for n in range(3000):
            await READ_ONCE(world.board.x)
            if n % 500 == 0:
                await choose(2)

    async def writes(world: World) -> None:
        for n in range(3000):
            await WRITE_ONCE(world.board.y, n)

    assert walk(threads(long, writes)).titles == []
