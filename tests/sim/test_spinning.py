"""Loops that spin for a cell are searched completely, in few executions, and livelocks are seen."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sim.cells import Cell
from sim.choosing import Strategy
from sim.console import result_json, summary
from sim.errors import MisuseError
from sim.execution import CUT
from sim.explore import Budget, Explorer
from sim.macros import (
    READ_ONCE,
    WRITE_ONCE,
    choose,
    cmpxchg,
    cpu_relax,
    free,
    load,
    lock,
    outcome,
    smp_load_acquire,
    smp_store_release,
    store,
    unlock,
    wait_until,
)
from sim.memory import Memory
from sim.strategies.bounded import Bounded
from sim.strategies.dfs import Dfs
from sim.strategies.dpor import Dpor
from sim.strategies.random_walk import RandomWalk
from sim.threads import spawn
from sim.workload import workload
from tests.sim.detectors.support import (
    Board,
    Item,
    Program,
    Reading,
    Report,
    World,
    run,
    synchronize_rcu,
    text,
    threads,
)

Outcomes = Counter[tuple[Any, ...]]


def search(program: Program, strategy: Strategy) -> tuple[Report, Outcomes]:
    """All executions of `strategy`: what was reported, and how often each outcome came."""
    report, outcomes = Report(), Outcomes()
    while strategy.begin():
        execution = run(program, strategy, report)
        assert execution.state is not CUT
        if not execution.findings:
            outcomes[tuple(value for _, value in sorted(execution.outcomes))] += 1
    return report, outcomes


# -- what spinning stands for --------------------------------------------------------------------


async def sets(world: World) -> None:
    await WRITE_ONCE(world.board.x, 1)
    await WRITE_ONCE(world.board.x, 2)


async def spins(world: World) -> None:
    while (x := await READ_ONCE(world.board.x)) == 0:
        await cpu_relax(world.board.x, x)
    await outcome(x)


async def spins_once(world: World) -> None:
    """What `spins` comes to, as there is nobody who sets the cell back."""
    x = await READ_ONCE(world.board.x)
    if x == 0:
        await wait_until(lambda now: now != 0, world.board.x)
        x = await READ_ONCE(world.board.x)
    await outcome(x)


@pytest.mark.parametrize("others", [(sets,), (sets, sets)])
def test_a_loop_has_as_many_classes_as_one_time_round(others: tuple[Any, ...]) -> None:
    renamed = [_named(other, nth) for nth, other in enumerate(others)]
    loop = search(threads(spins, *renamed), Dpor())
    unrolled = search(threads(spins_once, *renamed), Dpor())
    everything = search(threads(spins, *renamed), Dfs())

    assert loop == unrolled
    assert set(loop[1]) == set(everything[1])
    assert not loop[0].findings


def _named(task: Callable[[World], Any], nth: int) -> Callable[[World], Any]:
    async def body(world: World) -> None:
        await task(world)

    body.__name__ = f"other{nth}"
    return body


def test_classes_of_one_reader_that_spins() -> None:
    _, outcomes = search(threads(spins, sets), Dpor())

    # before both writes or not, and then between them or behind; read at once: two of those
    assert outcomes == {(1,): 2, (2,): 3}


# -- what is built of it -------------------------------------------------------------------------


async def spin_lock(board: Board) -> None:
    while (taken := await cmpxchg(board.y, 0, 1)) != 0:
        await cpu_relax(board.y, taken)


def counts(name: str) -> Callable[[World], Any]:
    async def body(world: World) -> None:
        await spin_lock(world.board)
        await store(world.board.x, await load(world.board.x) + 1)
        await outcome(await load(world.board.x))
        await smp_store_release(world.board.y, 0)

    body.__name__ = name
    return body


@pytest.mark.parametrize("strategy", [Dpor, Dfs, lambda: Dfs(2, distinct=True), lambda: Bounded(2)])
def test_a_spinlock_excludes(strategy: Callable[[], Strategy]) -> None:
    report, outcomes = search(threads(counts("one"), counts("two")), strategy())

    assert not report.findings
    assert set(outcomes) == {(1, 2), (2, 1)}


def test_a_spinlock_of_three_threads_is_searched_completely() -> None:
    search_ = Dpor()
    report, outcomes = search(threads(*map(counts, ("one", "two", "three"))), search_)

    assert (search_.complete, search_.blocked) == (True, 0)
    assert not report.findings
    assert len(outcomes) == 6


async def writes_twice(world: World) -> None:
    """A seqcount's writer."""
    board = world.board
    for value in (1, 2):
        await WRITE_ONCE(board.y, 2 * value - 1)
        await WRITE_ONCE(board.x, value)
        await WRITE_ONCE(board.data.word(0, 8), value)
        await WRITE_ONCE(board.y, 2 * value)


async def reads_both(world: World) -> None:
    board = world.board
    while True:
        while (begin := await smp_load_acquire(board.y)) & 1:
            await cpu_relax(board.y, begin)
        pair = await READ_ONCE(board.x), await READ_ONCE(board.data.word(0, 8))
        if await READ_ONCE(board.y) == begin:
            break
    await outcome(pair)


@pytest.mark.parametrize("strategy", [Dpor, Dfs])
def test_a_reader_of_a_seqcount_sees_no_mixture(strategy: Callable[[], Strategy]) -> None:
    report, outcomes = search(threads(writes_twice, reads_both), strategy())

    assert not report.findings
    assert set(outcomes) == {((0, 0),), ((1, 1),), ((2, 2),)}


def competes(nth: int, *, politely: bool = True) -> Callable[[World], Any]:
    """Peterson's lock (1981): two flags, and whose turn it is, in two loads."""

    async def body(world: World) -> None:
        board = world.board
        mine, other = (board.x, board.y) if nth else (board.y, board.x)
        turn, inside = board.data.word(0, 8), board.data.word(8, 8)
        await WRITE_ONCE(mine, 1)
        if politely:
            await WRITE_ONCE(turn, 1 - nth)
        while (flag := await READ_ONCE(other)) and (now := await READ_ONCE(turn)) != nth:
            await cpu_relax(other, flag, turn, now)
        await WRITE_ONCE(inside, await READ_ONCE(inside) + 1)
        await outcome(await READ_ONCE(inside))
        await WRITE_ONCE(mine, 0)

    body.__name__ = f"competitor{nth}"
    return body


@pytest.mark.parametrize("strategy", [Dpor, Dfs, lambda: Bounded(3)])
def test_petersons_lock_excludes(strategy: Callable[[], Strategy]) -> None:
    search_ = strategy()
    report, outcomes = search(threads(competes(0), competes(1)), search_)

    assert not report.findings
    assert set(outcomes) == {(1, 2), (2, 1)}
    assert getattr(search_, "complete", False)


def test_petersons_lock_needs_that_one_gives_way() -> None:
    """Without a write to `turn` thread 0 goes in whatever thread 1 says."""
    rude = competes(0, politely=False), competes(1, politely=False)
    _, outcomes = search(threads(*rude), Dpor())

    assert (1, 1) in outcomes


def test_a_place_without_what_was_seen_there_is_refused() -> None:
    async def main(world: World) -> None:
        await cpu_relax(world.board.x, 0, world.board.y)

    with pytest.raises(MisuseError, match="a `seen` is missing"):
        run(main, RandomWalk(0), Report())


# -- livelocks -----------------------------------------------------------------------------------


async def left(world: World) -> None:
    while (y := await READ_ONCE(world.board.y)) == 0:
        await cpu_relax(world.board.y, y)
    await WRITE_ONCE(world.board.x, 1)


async def right(world: World) -> None:
    while (x := await READ_ONCE(world.board.x)) == 0:
        await cpu_relax(world.board.x, x)
    await WRITE_ONCE(world.board.y, 1)


STRATEGIES = [Dpor, Dfs, lambda: Bounded(1)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_that_spin_for_each_other_are_in_a_livelock(strategy: Callable[[], Strategy]) -> None:
    report, outcomes = search(threads(left, right), strategy())

    assert report.only.kind == "livelock"
    assert report.only.title == "INFO: livelock of left, right: nothing changes any more"
    assert report.only.threads == ("left", "right")
    assert "cpu_relax waits for a change of\n board.0.y = 0" in text(report.only)
    assert not outcomes


def test_a_random_walk_sees_the_livelock_at_once() -> None:
    report, strategy = Report(), RandomWalk(0)
    strategy.begin()
    run(threads(left, right), strategy, report)

    assert report.only.kind == "livelock"
    assert report.noticed == report.executions == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_livelock_that_needs_a_certain_order_is_found(strategy: Callable[[], Strategy]) -> None:
    async def forgets(world: World) -> None:
        if await choose(2):
            await WRITE_ONCE(world.board.x, 1)
            await WRITE_ONCE(world.board.x, 0)

    report, outcomes = search(threads(spins, forgets), strategy())

    assert report.only.title == "INFO: livelock of spins: nothing changes any more"
    assert outcomes


def test_who_waits_behind_a_livelock_is_named() -> None:
    async def holds(world: World) -> None:
        async with Reading(world):
            await lock(world.board.left)
            await spins(world)
            await unlock(world.board.left)

    async def waits(world: World) -> None:
        await synchronize_rcu(world)
        await WRITE_ONCE(world.board.x, 1)

    report, _ = search(threads(holds, waits), Dpor())

    assert report.only.title == "INFO: livelock of holds: nothing changes any more"
    assert "waits waits behind them for synchronize_rcu" in text(report.only)


def test_a_livelock_says_that_what_is_spun_for_has_been_freed() -> None:
    async def main(world: World) -> None:
        item = world.memory.static(Item)

        async def watches() -> None:
            await cpu_relax(item.value, await READ_ONCE(item.value))

        await spawn(watches, name="watches")
        await free(item)

    report, _ = search(main, Dpor())

    assert {found.kind for found in report.findings.values()} == {"use-after-free", "livelock"}
    assert "item.0.value = 7, which has been freed" in text(
        next(found for found in report.findings.values() if found.kind == "livelock")
    )


# -- without saying so ---------------------------------------------------------------------------


@workload()
async def carelessly(memory: Memory) -> None:
    """A loop that does not say what it spins for, and another thread that goes on meanwhile."""
    board = memory.static(Board)

    async def spinner() -> None:
        while await READ_ONCE(board.x) == 0:
            pass

    async def setter() -> None:
        await WRITE_ONCE(board.x, 1)

    await spawn(spinner, name="spinner")
    await spawn(setter, name="setter")


def test_a_loop_that_does_not_say_what_it_spins_for_is_cut_and_proves_nothing() -> None:
    result = Explorer(carelessly.prepare({}), Dpor(), Budget(executions=30, steps=50)).explore()

    assert result.cut
    assert result.verdict == "inconclusive"


# -- what a proof says ---------------------------------------------------------------------------


@workload()
async def both_or_none(memory: Memory) -> None:
    """A thread that waits until two cells are equal, and two that write them."""
    board = memory.static(Board)

    async def waits() -> None:
        await wait_until(lambda x, y: x == y, board.x, board.y)

    async def sets(place: Cell[int]) -> None:
        await WRITE_ONCE(place, 1)

    await spawn(sets, board.x, name="x")
    await spawn(sets, board.y, name="y")
    await spawn(waits, name="waits")


def test_a_proof_with_waits_for_several_cells_counts_no_classes() -> None:
    program = both_or_none.prepare({})
    result = Explorer(program, Dpor(), Budget()).explore()

    assert (result.verdict, result.complete, result.classes) == ("proved", True, None)
    told = summary(program, result)
    assert told[1].startswith("all interleavings explored, up to the order of independent steps:")
    assert told[2] == "  some classes may have been run more than once"


# -- executions that are cut ---------------------------------------------------------------------


@workload()
async def polls(memory: Memory) -> None:
    """A loop that goes on for ever, writing, and two threads that have a bug of their own."""
    board = memory.static(Board)

    async def poller() -> None:
        while await READ_ONCE(board.x) == 0:
            await WRITE_ONCE(board.x, 0)

    async def loses() -> None:
        await WRITE_ONCE(board.y, await READ_ONCE(board.y) + 1)
        if await READ_ONCE(board.y) == 1:
            raise AssertionError("an update is lost")

    await spawn(poller, name="poller")
    for nth in range(2):
        await spawn(loses, name=f"loses{nth}")


def test_a_thread_that_goes_on_for_ever_does_not_keep_others_from_running() -> None:
    result = Explorer(polls.prepare({}), Dpor(), Budget(executions=30, steps=5000)).explore()

    assert result.verdict == "finding"


@pytest.mark.parametrize("strategy", [Dpor(), Bounded(2)])
def test_a_search_with_executions_that_were_cut_is_not_called_complete(strategy: Strategy) -> None:
    program = polls.prepare({})
    result = Explorer(program, strategy, Budget(steps=50)).explore()
    told = result_json(program, {}, result)

    assert (result.verdict, result.exhausted, result.classes) == ("inconclusive", False, None)
    assert (told["complete"], told["stopped"]) == (False, "the step limit")
    assert told["preemptions_finished"] is None
    assert "is not explored" in "".join(summary(program, result))
    by_force = Explorer(program, Dfs(0), Budget(steps=50), keep_going=True).explore()
    assert by_force.cut
    assert by_force.exhausted
