"""Both hosts run the same executions; the trio host can be cancelled at any step."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.events import Event
from sim.execution import DONE, RUNNING, Execution
from sim.hosts import direct, trio_host
from sim.strategies.random_walk import RandomWalk
from tests.programs.code import Modify, Program
from tests.programs.drawing import programs
from tests.programs.interpreter import Machine, main_of
from tests.programs.running import Scripted, execute, view

FAST = settings(max_examples=60, derandomize=True, deadline=None, database=None)
LONG = Program(tuple(tuple(Modify("x") for _ in range(10)) for _ in range(3)))


def told(program: Program, seed: int, host: Callable[[Execution], None]) -> list[Any]:
    run = execute(program, Scripted(seed=seed), host=host)
    return [(event.step, event.thread.name, view(event)) for event in run.events]


@FAST
@given(programs(), st.integers(0, 99))
def test_both_hosts_give_the_same_events(program: Program, seed: int) -> None:
    assert told(program, seed, trio_host.run_blocking) == told(program, seed, direct.run)


class Watched:
    """An execution of a long program that does something at a given step."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        machine = Machine()
        strategy = RandomWalk(1)
        strategy.begin()
        self.at = at
        self.action = action
        self.events: list[Event] = []
        self.execution = Execution(
            main_of(LONG, machine), machine.memory, strategy, observer=self.observe
        )

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if event.step == self.at:
            self.action()

    @property
    def told(self) -> list[Any]:
        return [(event.step, event.thread.name, view(event)) for event in self.events]


def whole() -> list[Any]:
    watched = Watched(-1, lambda: None)
    direct.run(watched.execution)
    return watched.told


@pytest.mark.parametrize("at", [0, 1, 7, 20])
def test_cancelling_leaves_no_thread_and_the_events_so_far(at: int) -> None:
    async def main() -> Watched:
        with trio.CancelScope() as scope:
            watched = Watched(at, scope.cancel)
            await trio_host.run(watched.execution)
        assert scope.cancelled_caught
        tasks = trio.lowlevel.current_task().child_nurseries
        assert not tasks
        return watched

    watched = trio.run(main)

    assert watched.execution.state is RUNNING
    assert all(thread.coroutine is None for thread in watched.execution.threads.all)
    assert watched.told == whole()[: at + 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("host", [direct.run, trio_host.run_blocking])
def test_an_error_comes_out_as_it_is_and_leaves_no_thread(
    host: Callable[[Execution], None], error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error

    watched = Watched(9, fail)

    with pytest.raises(error):
        host(watched.execution)

    assert all(thread.coroutine is None for thread in watched.execution.threads.all)
    assert watched.told == whole()[:10]


def test_other_tasks_go_on_between_steps() -> None:
    ticks = 0

    async def ticker() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async def main() -> str:
        watched = Watched(-1, lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticker)
            await trio_host.run(watched.execution)
            nursery.cancel_scope.cancel()
        return watched.execution.state

    assert trio.run(main) is DONE
    assert ticks > 10


def test_two_executions_side_by_side() -> None:
    """Each gives what it gives alone: nothing of a run is global."""

    async def main() -> list[Watched]:
        runs = [Watched(-1, lambda: None) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for watched in runs:
                nursery.start_soon(trio_host.run, watched.execution)
        return runs

    assert [watched.told for watched in trio.run(main)] == [whole()] * 3
