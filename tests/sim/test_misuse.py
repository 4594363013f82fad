"""Using the framework wrongly is refused, and the message says what to write instead."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from sim.cells import Cell, Cells, Struct, cell
from sim.choosing import Strategy
from sim.clock import sleep
from sim.cpu import Cpu
from sim.detectors import standard_detectors
from sim.errors import MisuseError, NondeterminismError, UsageError, UsedWithoutAwait
from sim.execution import CUT, Execution
from sim.hosts import direct, trio_host
from sim.macros import (
    READ_ONCE,
    WRITE_ONCE,
    alloc,
    choose,
    cpu_release,
    join,
    load,
    section_end,
    store,
    wait_until,
)
from sim.memory import Memory
from sim.sections import Domain, Section
from sim.strategies.dfs import Dfs
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices
from sim.threads import current, spawn


class Box(Struct):
    KIND = "box"
    x: Cell[int] = cell(0)
    slots: Cells[int]

    def __init__(self) -> None:
        self.add_cells("slots", 2, 0)
        self.add_bytes("data", 4)


Step = Callable[[Any], Awaitable[object]]


def prepare(main: Step, strategy: Strategy | None = None, **options: Any) -> Execution:
    """An execution of `main` on a box."""
    memory = Memory()
    box = memory.static(Box)
    strategy = strategy or Choices([])
    strategy.begin()

    async def body() -> None:
        await main(box)

    return Execution(body, memory, strategy, standard_detectors(memory), **options)


def run(main: Step, strategy: Strategy | None = None, **options: Any) -> Execution:
    execution = prepare(main, strategy, **options)
    direct.run(execution)
    return execution


# -- an await is missing -----------------------------------------------------------------------


def test_a_dropped_operation() -> None:
    async def main(box: Box) -> None:
        WRITE_ONCE(box.x, 1)  # type: ignore[unused-awaitable]  # the mistake
        await READ_ONCE(box.x)

    with pytest.raises(
        MisuseError,
        match=r"thread main made the operation WRITE_ONCE and dropped it: write "
        r"`await WRITE_ONCE\(\.\.\.\)`",
    ):
        run(main, audit=True)


def test_a_dropped_operation_at_the_end_of_a_thread() -> None:
    async def main(box: Box) -> None:
        await READ_ONCE(box.x)
        store(box.x, 1)  # type: ignore[unused-awaitable]  # the mistake

    with pytest.raises(MisuseError, match="made the operation store and dropped it"):
        run(main, audit=True)


def test_awaiting_every_operation_passes_the_audit() -> None:
    async def main(box: Box) -> None:
        await sleep(3)
        await WRITE_ONCE(box.x, await READ_ONCE(box.x) + 1)

    assert run(main, audit=True).findings == []


def test_a_dropped_coroutine_is_pythons_warning() -> None:
    async def main(box: Box) -> None:
        sleep(3)  # type: ignore[unused-coroutine]  # the mistake
        await READ_ONCE(box.x)

    with pytest.warns(RuntimeWarning, match="never awaited"):
        run(main)


@pytest.mark.parametrize(
    ("use", "how"),
    [
        (bool, "used as a truth value"),
        (lambda x: x == 0, "compared"),
        (lambda x: x != 0, "compared"),
        (lambda x: x < 1, "compared"),
        (lambda x: x >= 1, "compared"),
        (lambda x: x in [1], "compared"),
        (lambda x: x + 1, "used in arithmetic"),
        (lambda x: 1 + x, "used in arithmetic"),
        (lambda x: x - 1, "used in arithmetic"),
        (int, "used as a number"),
        (lambda x: [10, 20][x], "used as a number"),
        (list, "iterated over"),
    ],
)
def test_a_cell_is_no_value(use: Callable[[Any], object], how: str) -> None:
    async def main(box: Box) -> None:
        use(box.x)

    with pytest.raises(UsedWithoutAwait, match=rf"box\.0\.x was {how}: .* write `await load\("):
        run(main)


def test_a_cell_is_no_key() -> None:
    async def main(box: Box) -> None:
        _ = {box.x: 1}

    assert [f.title for f in run(main).findings] == [
        "BUG: unhandled exception in thread main: TypeError: unhashable type: 'Cell'"
    ]


def test_an_operation_is_no_value() -> None:
    async def main(box: Box) -> None:
        while load(box.x):  # the mistake
            pass

    with pytest.raises(UsedWithoutAwait, match=r"load was used as a value: write `await load\("):
        run(main)


# -- writing without an operation ----------------------------------------------------------------


def test_assigning_to_a_cell() -> None:
    async def main(box: Box) -> None:
        box.x = 1  # type: ignore[assignment]  # the mistake

    with pytest.raises(
        MisuseError, match=r"assigning to box\.0\.x: write `await store\(x\.x, value\)`"
    ):
        run(main)


@pytest.mark.parametrize("name", ["slots", "data"])
def test_assigning_to_an_array_or_a_region(name: str) -> None:
    async def main(box: Box) -> None:
        setattr(box, name, None)

    with pytest.raises(MisuseError, match=rf"assigning to box\.0\.{name}: write"):
        run(main)


def test_assigning_into_an_array() -> None:
    async def main(box: Box) -> None:
        box.slots[1] = 1  # type: ignore[index]  # the mistake

    with pytest.raises(
        MisuseError, match=r"assigning to box\.0\.slots\[1\]: write `await store\(cell, value\)`"
    ):
        run(main)


# -- awaiting something else ----------------------------------------------------------------------


def test_awaiting_asyncio_in_a_modelled_thread() -> None:
    async def main(box: Box) -> None:
        del box
        await asyncio.sleep(0)

    with pytest.raises(
        MisuseError,
        match="thread main awaited None, which is no operation of rcusim: await only modelled",
    ):
        run(main)


def test_awaiting_trio_in_a_modelled_thread() -> None:
    async def main(box: Box) -> None:
        await READ_ONCE(box.x)
        await trio.sleep(0)

    with pytest.raises(MisuseError, match=r"thread main awaited .*, which is no operation"):
        trio_host.run_blocking(prepare(main))


@pytest.mark.parametrize("foreign", [lambda: asyncio.sleep(1), lambda: trio.sleep(1)])
def test_what_an_event_loop_raises_outside_of_one(foreign: Callable[[], Any]) -> None:
    async def main(box: Box) -> None:
        del box
        await foreign()

    with pytest.raises(MisuseError, match=r"thread main awaited a function of an event loop"):
        run(main)


def test_the_trio_host_inside_trio() -> None:
    async def main(box: Box) -> None:
        await READ_ONCE(box.x)

    async def outside() -> None:
        trio_host.run_blocking(prepare(main))

    with pytest.raises(MisuseError, match=r"write `await sim\.hosts\.trio_host\.run\(execution\)`"):
        trio.run(outside)


# -- threads --------------------------------------------------------------------------------------


async def idle() -> None:
    pass


def test_two_threads_of_one_name() -> None:
    async def main(box: Box) -> None:
        del box
        await spawn(idle, name="twin")
        await spawn(idle, name="twin")

    with pytest.raises(
        MisuseError, match="two threads are named 'twin': give each its own `name=`"
    ):
        run(main)


def test_spawning_an_ordinary_function() -> None:
    def ordinary() -> int:
        return 3

    async def main(box: Box) -> None:
        del box
        await spawn(ordinary, name="worker")  # type: ignore[arg-type]  # the mistake

    with pytest.raises(
        MisuseError,
        match="thread 'worker' is not a coroutine: spawn an `async def` function, got int",
    ):
        run(main)


def test_spawning_a_call() -> None:
    async def main(box: Box) -> None:
        del box
        coroutine = idle()
        try:
            await spawn(coroutine)  # type: ignore[arg-type]  # the mistake
        finally:
            coroutine.close()

    with pytest.raises(
        MisuseError, match=r"give it the function and its arguments, `spawn\(f, x\)`"
    ):
        run(main)


def test_joining_what_is_no_thread() -> None:
    async def main(box: Box) -> None:
        del box
        await join(spawn(idle))  # type: ignore[arg-type]  # the mistake

    with pytest.raises(MisuseError, match=r"as in `join\(await spawn\(\.\.\.\)\)`"):
        run(main)


def test_joining_oneself_is_a_deadlock() -> None:
    async def main(box: Box) -> None:
        del box
        await join(current())

    assert [f.title for f in run(main).findings] == ["BUG: deadlock: main (join) -> main"]


def test_current_outside_a_thread() -> None:
    with pytest.raises(MisuseError, match="no modelled thread is running: call this from a"):
        current()


# -- operations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda box: choose(0), r"choose\(0\): there must be at least 1 value to choose from"),
        (lambda box: choose(-1), r"choose\(-1\): there must be at least 1 value"),
        (lambda box: sleep(-1), r"sleep\(-1\): a duration is 0 or more nanoseconds"),
        (lambda box: wait_until(bool), "name the cells that the predicate reads"),
        (
            lambda box: section_end(Memory().static(Domain, "rcu"), Section("main", 0), "unlock"),
            r"main ends Section\(.*\) of rcu: not open",
        ),
        (
            lambda box: cpu_release(Memory().static(Cpu, 3), "preempt_enable"),
            "main releases CPU 3, which it does not hold",
        ),
    ],
)
def test_operations_that_make_no_sense(step: Step, message: str) -> None:
    async def main(box: Box) -> None:
        await step(box)

    with pytest.raises(MisuseError, match=message):
        run(main)


def test_more_objects_than_a_thread_has_addresses_for() -> None:
    class Huge(Struct):
        def __init__(self) -> None:
            self.add_bytes("data", 5 << 20)

    async def main(box: Box) -> None:
        del box
        for _ in range(4):
            await alloc(Huge)

    with pytest.raises(MisuseError, match="thread main has allocated more than 16 MiB"):
        run(main)


# -- runs -----------------------------------------------------------------------------------------


def test_a_workload_that_never_ends_is_cut() -> None:
    async def main(box: Box) -> None:
        while True:
            await WRITE_ONCE(box.x, 1)

    execution = run(main, max_steps=50)

    assert execution.state is CUT
    assert execution.step == 50


def test_behaviour_that_changes_between_runs() -> None:
    runs: list[int] = []

    async def main(box: Box) -> None:
        del box
        runs.append(1)
        await choose(2 + len(runs))

    strategy = Dfs()
    run(main, strategy)

    with pytest.raises(
        NondeterminismError,
        match="choice 0 had 3 alternatives and now has 4 after the same choices: something "
        "outside the choices decides",
    ):
        run(main, strategy)


def test_a_choice_that_the_execution_does_not_have() -> None:
    async def main(box: Box) -> None:
        del box
        await choose(2)

    with pytest.raises(UsageError, match="choice 0 is 2, but there are 2 values for main"):
        run(main, Choices([2]))


def test_an_exception_in_a_thread_is_a_finding_and_not_raised() -> None:
    async def main(box: Box) -> None:
        await READ_ONCE(box.x)
        raise KeyError("lost")

    assert [f.kind for f in run(main, RandomWalk(1)).findings] == ["crash"]
