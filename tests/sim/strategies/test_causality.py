"""A search that stops where it meets a past again loses no outcome, whatever its bound.

Held against brute force on random programs; and each kind of dependence that is forgotten is
noticed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings

from sim import ops
from sim.cells import Cell, Struct, cell
from sim.errors import NondeterminismError
from sim.events import Event
from sim.execution import Execution
from sim.hosts import direct
from sim.macros import load
from sim.memory import Memory
from sim.ops import Op
from sim.strategies import causality
from sim.strategies.causality import Causality
from sim.strategies.dfs import Dfs
from sim.threads import spawn
from tests.programs.code import Await, Program, Read, Reader, Sleep, Swap, Synchronize, Time, Write
from tests.programs.drawing import programs
from tests.programs.running import (
    Outcome,
    Run,
    Scripted,
    TooMany,
    contents,
    execute,
    histories,
    prepare,
)

FAST = settings(max_examples=60, derandomize=True, deadline=None, database=None)
SLOW = settings(FAST, max_examples=2000)
LIMIT = 3_000
SMALL = programs(threads=(2, 3), length=2, weight=5)


def outcomes(program: Program, bound: int | None, *, distinct: bool) -> set[Outcome]:
    """What the executions that went to their end came to."""
    found: set[Outcome] = set()
    strategy = Dfs(bound, distinct=distinct)
    runs = 0
    while strategy.begin():
        runs += 1
        if runs > LIMIT:
            raise TooMany
        run = execute(program, strategy)
        if run.execution.state != "redundant":
            found.add(run.outcome)
    return found


def lost(program: Program) -> set[Outcome]:
    """Outcomes of brute force that the reduced search does not come to, for any bound."""
    missing: set[Outcome] = set()
    try:
        for bound in (0, 1, 2, None):
            missing |= outcomes(program, bound, distinct=False) - outcomes(
                program, bound, distinct=True
            )
    except TooMany:
        assume(False)
    return missing


@FAST
@given(SMALL)
def test_no_outcome_is_lost(program: Program) -> None:
    assert lost(program) == set()


@pytest.mark.slow
@SLOW
@given(SMALL)
def test_no_outcome_of_many_programs_is_lost(program: Program) -> None:
    assert lost(program) == set()


def confused(program: Program) -> str:
    """Two prefixes of executions of equal pasts and different states; empty: there are none."""
    met: dict[int, tuple[Any, Any]] = {}
    strategy = Dfs()
    runs = 0
    while strategy.begin():
        runs += 1
        if runs > LIMIT:
            raise TooMany
        run = prepare(program, strategy)
        steps = Causality()

        def observe(event: Event, run: Run = run, steps: Causality = steps) -> None:
            run.events.append(event)
            steps.observe(event)
            state = histories(run.events), contents(run.machine.memory)
            assert met.setdefault(steps.past, state) == state

        run.execution._observer = observe  # type: ignore[misc]  # in the place of `prepare`'s own
        try:
            direct.run(run.execution)
        except AssertionError:
            return f"after {run.schedule}"
    return ""


@FAST
@given(SMALL)
def test_equal_pasts_lead_to_equal_states(program: Program) -> None:
    try:
        assert confused(program) == ""
    except TooMany:
        assume(False)


def test_independent_steps_are_run_in_few_orders() -> None:
    steps = tuple(Write("x", value) for value in range(6))
    others = tuple(Write("y", value) for value in range(6))
    runs = 0
    strategy = Dfs(distinct=True)
    while strategy.begin():
        runs += 1
        execute(Program((steps, others)), strategy)

    assert runs <= 6 * 6 + 1  # of 924 interleavings


STORE_BUFFERING = Program(((Write("x", 1), Read("y")), (Write("y", 1), Read("x"))))
SWAPPED = Program(((Swap("x", 1),), (Swap("x", 2),)))
WAITING = Program(((Await("x"),), (Write("x", 1), Write("x", 2))))
ASLEEP = Program(((Sleep(1), Time()), (Sleep(2), Time())))


@pytest.mark.parametrize(
    ("program", "part", "kind"),
    [
        (STORE_BUFFERING, "_sees", ops.LOAD),
        (STORE_BUFFERING, "_changes", ops.STORE),
        (SWAPPED, "_changes", ops.XCHG),
        (WAITING, "_sees", ops.WAIT),
        (ASLEEP, "_changes", ops.SLEEP),
    ],
)
def test_a_dependence_that_is_forgotten_confuses_states(
    program: Program, part: str, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert confused(program) == ""
    original: Callable[..., Iterator[Any]] = getattr(causality, part)

    def forgetful(*args: Any) -> Iterator[Any]:
        op: Op[Any] = args[-1]
        return iter(()) if op.kind == kind else original(*args)

    monkeypatch.setattr(causality, part, forgetful)

    assert confused(program) != ""


@pytest.mark.parametrize(
    ("part", "kind"), [("_sees", ops.SECTION_BEGIN), ("_changes", ops.GP_START)]
)
def test_forgetting_which_readers_a_grace_period_waits_for_is_noticed(
    part: str, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states are equal, but not what a grace period waits for: the pasts must differ."""

    def pasts(*names: str) -> int:
        program = Program(((Reader("rcu", (Read("x"),)),), (Synchronize("rcu"),)))
        run = execute(program, Scripted(names))
        steps = Causality()
        for event in run.events[:5]:
            steps.observe(event)
        return steps.past

    orders = ("main", "main", "main", "t0", "t1"), ("main", "main", "main", "t1", "t0")
    assert pasts(*orders[0]) != pasts(*orders[1])
    original: Callable[..., Iterator[Any]] = getattr(causality, part)
    monkeypatch.setattr(
        causality,
        part,
        lambda *args: iter(()) if args[-1].kind == kind else original(*args),
    )

    assert pasts(*orders[0]) == pasts(*orders[1])


def search(main: Callable[[Memory], Callable[[], Any]]) -> None:
    strategy = Dfs(distinct=True)
    while strategy.begin():
        memory = Memory()
        direct.run(Execution(main(memory), memory, strategy))


def test_state_outside_of_cells_that_decides_a_step_is_noticed() -> None:
    class Pair(Struct):
        x: Cell[int] = cell(0)
        y: Cell[int] = cell(0)

    def program(memory: Memory) -> Callable[[], Any]:
        pair = memory.static(Pair)
        seen: list[int] = []

        async def notes() -> None:
            await load(pair.x)
            seen.append(1)
            await load(pair.x)
            await load(pair.x)

        async def asks() -> None:
            await load(pair.y)
            await load(pair.x if seen else pair.y)
            await load(pair.y)

        async def main() -> None:
            await spawn(notes)
            await spawn(asks)

        return main

    with pytest.raises(NondeterminismError, match="share state outside of cells"):
        search(program)
