"""`dependent` and `LOCAL` tell the truth, on random programs and on those that once refuted them.

The checkers are in `tests/sim/swapping.py`; tests/quality/test_mutants.py shows what they find.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim import ops
from sim.cells import Cell, Struct, cell
from sim.macros import READ_ONCE, WRITE_ONCE, fetch, free, join, rewrite, smp_mb
from sim.memory import Memory
from sim.ops import Op, dependent
from sim.strategies.dpor import Dpor
from sim.threads import Thread
from tests.programs.code import (
    Await,
    Fork,
    Held,
    Program,
    Read,
    Reader,
    Sleep,
    Synchronize,
    Write,
    has,
)
from tests.programs.drawing import Features, programs
from tests.programs.running import TooMany, brute_force, every_outcome, execute
from tests.sim.swapping import local_counterexample, swap_counterexample

FAST = settings(max_examples=100, derandomize=True, deadline=None, database=None)
SLOW = settings(FAST, max_examples=3000)
NO_HOGS = Features(hogs=False)
SMALL = programs(NO_HOGS, threads=(2, 3), length=2, weight=5)


class Box(Struct):
    KIND = "box"
    x: Cell[int] = cell(0)


class Empty(Struct):
    KIND = "empty"


@FAST
@given(programs(), st.integers(0, 99))
def test_independent_neighbours_may_change_places(program: Program, seed: int) -> None:
    assert swap_counterexample(program, seed) == ""


@pytest.mark.slow
@SLOW
@given(programs(threads=(2, 4), weight=20), st.integers(0, 99))
def test_independent_neighbours_of_larger_programs_may_change_places(
    program: Program, seed: int
) -> None:
    assert swap_counterexample(program, seed) == ""


def no_outcome_is_lost(program: Program) -> None:
    try:
        difference = local_counterexample(program)
    except TooMany:
        assume(False)
    assert difference == ""


@settings(FAST, max_examples=30)
@given(SMALL)
def test_local_steps_need_no_scheduling_point(program: Program) -> None:
    no_outcome_is_lost(program)


@pytest.mark.slow
@settings(SLOW, max_examples=300)
@given(programs(NO_HOGS, threads=(2, 3), weight=6))
def test_local_steps_of_larger_programs_need_no_scheduling_point(program: Program) -> None:
    no_outcome_is_lost(program)


READ_X = Read("x")
WRITE_X = Held((Write("x", 1),))

# Programs that performing the first CPU_HOLD of a lone thread at once got wrong.
LATER_SHARED = [
    Program(((WRITE_X,), (READ_X,)), (0, 0)),
    Program(((Write("y", 1), WRITE_X), (Await("y"), Fork((READ_X,), cpu=0))), (0, 1)),
]


@pytest.mark.parametrize("program", LATER_SHARED)
def test_a_cpu_that_is_shared_later_is_held_no_earlier(program: Program) -> None:
    assert local_counterexample(program) == ""


HOG = Held((Await("x"),))  # keeps the CPU until another thread lets it go

# Programs in which a thread can be kept from a step by one that waits for what it brings about.
KEPT_FROM_IT = [
    Program(((Fork((Write("x", 1),)),), (HOG,)), (0, 0)),
    Program(((Fork((READ_X,), cpu=0, joined=True), Write("x", 1)), (HOG,)), (None, 0)),
    Program(
        ((Reader("rcu", (Write("y", 1),)),), (HOG,), (Await("y"), Synchronize("rcu"), Write("x"))),
        (0, 0, None),
    ),
]


def waits_while_it_holds(program: Program) -> bool:
    """Whether a thread that holds its CPU stands before a step that may have to wait, somewhere."""
    strategy, waited = Dpor(), False
    while strategy.begin() and not waited:
        waited = execute(program, strategy).execution.threads.holder_waited
    return waited


@pytest.mark.xfail(strict=True, reason="not modelled, see ops.LOCAL")
@pytest.mark.parametrize("program", KEPT_FROM_IT)
def test_a_thread_can_be_kept_off_its_cpu_before_a_step_that_its_holder_waits_for(
    program: Program,
) -> None:
    assert local_counterexample(program) == ""


@pytest.mark.parametrize("program", KEPT_FROM_IT)
def test_then_there_is_no_proof(program: Program) -> None:
    assert waits_while_it_holds(program)


def test_where_no_holder_waits_local_steps_need_no_scheduling_point() -> None:
    """Whatever else holders do: fork, end sections, allocate, free, begin grace periods."""
    held = replace(Features(), waits=False, locks=False, time=False)
    tried = 0

    @settings(FAST, max_examples=60)
    @given(programs(held, threads=(2, 3), length=2, weight=5))
    def same(program: Program) -> None:
        nonlocal tried
        assume(any(cpu is not None for cpu in program.cpus))
        assume(any(has(code, Held) for code in program.threads))
        assume(not waits_while_it_holds(program))
        no_outcome_is_lost(program)
        tried += 1

    same()

    assert tried >= 40


def test_a_timer_expires_on_a_cpu_that_is_held() -> None:
    """The holder waits for a thread elsewhere whose timer is due after that of its neighbour."""
    program = Program(
        ((Sleep(5),), (Held((Await("x"),)),), (Sleep(10), Write("x", 1))), cpus=(0, 0, 1)
    )

    assert {outcome.state for outcome in every_outcome(program).outcomes} == {"done"}


@settings(FAST, max_examples=20)
@given(SMALL)
def test_merging_states_loses_no_outcome(program: Program) -> None:
    """The search that the others here rely on, against running every interleaving."""
    try:
        assert every_outcome(program).outcomes == brute_force(program, limit=2000).outcomes
    except TooMany:
        assume(False)


def test_double_free_of_an_object_without_fields() -> None:
    empty = Memory().static(Empty)

    assert dependent(free(empty), free(empty))


THREAD = Thread("t", None, 0, None, None)
EXIT: Op[None] = Op(ops.EXIT, "exit", THREAD.key, 0, THREAD)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (lambda box: READ_ONCE(box.x), free, True),
        (lambda box: READ_ONCE(box.x), lambda box: READ_ONCE(box.x), False),
        (lambda box: smp_mb(), lambda box: smp_mb(), False),
        (lambda box: EXIT, lambda box: join(THREAD), True),
    ],
)
def test_dependent_is_symmetric(
    first: Callable[[Box], Op[Any]], second: Callable[[Box], Op[Any]], expected: bool
) -> None:
    box = Memory().static(Box)

    assert dependent(first(box), second(box)) is expected
    assert dependent(second(box), first(box)) is expected


def test_a_fetch_depends_on_what_changes_the_text_and_not_on_other_fetches() -> None:
    box = Memory().static(Box)
    here = fetch(box.x, box.addr, box.addr)
    elsewhere = fetch(box.x, box.addr + 4096, box.addr + 4096)

    assert not dependent(here, fetch(box.x, box.addr, box.addr))
    assert not dependent(here, READ_ONCE(box.x))
    for change in (WRITE_ONCE(box.x, 1), rewrite(box.x, 1, "memcpy"), free(box)):
        assert dependent(here, change)
        assert dependent(change, here)
        assert not dependent(elsewhere, change)
    assert dependent(rewrite(box.x, 1, "memcpy"), rewrite(box.x, 2, "memcpy"))
