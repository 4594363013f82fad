"""Vector clocks agree with happens-before by definition, and each edge is there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import ops
from sim.detectors.happens_before import joined
from tests.programs.code import (
    Await,
    Barrier,
    Cas,
    Instruction,
    Modify,
    Program,
    Read,
    Sleep,
    Swap,
    When,
    Write,
)
from tests.programs.drawing import Features, programs
from tests.sim.detectors.oracle import difference, observed

FAST = settings(max_examples=150, derandomize=True, deadline=None, database=None)
SLOW = settings(FAST, max_examples=3000)
ORDERING = Features(objects=False, time=False, choices=False)


@FAST
@given(programs(ORDERING), st.integers(0, 99))
def test_clocks_agree_with_the_definition(program: Program, seed: int) -> None:
    assert difference(program, seed) == ""


@pytest.mark.slow
@SLOW
@given(programs(threads=(2, 4), weight=25, length=6), st.integers(0, 99))
def test_clocks_agree_with_the_definition_in_larger_programs(program: Program, seed: int) -> None:
    assert difference(program, seed) == ""


ONE = (Write("x", 1, ops.PLAIN),)  # what the first thread does before it publishes


def passes(publish: Instruction, *receive: Instruction) -> bool:
    """Whether x is ordered before the second thread's read of it, in every run that sees y."""
    program = Program(
        ((*ONE, publish), (*receive, When(1, (Read("x", ops.PLAIN),)))), cpus=(None, None)
    )
    ordered: set[bool] = set()
    for seed in range(20):
        events, clocks = observed(program, seed)
        writes = [i for i, e in enumerate(events) if e.op.name == "write" and e.op.order == 0]
        reads = [i for i, e in enumerate(events) if e.op.name == "read" and e.op.order == 0]
        ordered.update(clocks.ordered(w, r) for w in writes for r in reads if w < r)
    assert len(ordered) == 1, "the programs here pass the value on always, or never"
    return ordered.pop()


RELEASED = Write("y", 1, ops.RELEASE)
RELAXED = Write("y", 1, ops.ONCE)
ACQUIRE = Read("y", ops.ACQUIRE)
RELAXED_READ = Read("y", ops.ONCE)


@pytest.mark.parametrize(
    ("publish", "receive", "expected"),
    [
        (RELEASED, [ACQUIRE], True),
        (RELEASED, [Read("y", ops.DEREF)], True),
        (RELEASED, [Await("y"), ACQUIRE], True),
        (RELEASED, [RELAXED_READ], False),
        (RELEASED, [RELAXED_READ, Barrier(ops.ACQUIRE)], True),
        (RELEASED, [RELAXED_READ, Barrier(ops.RELEASE)], False),
        (RELEASED, [Read("y", ops.PLAIN), Barrier(ops.ACQUIRE)], False),
        (RELAXED, [ACQUIRE], False),
        (Swap("y", 1), [ACQUIRE], True),
        (Cas("y", 0, 1), [ACQUIRE], True),
        (Modify("y"), [Modify("y", "inc_not_zero")], True),
        (Modify("y", order=ops.ONCE), [ACQUIRE], False),
        (Sleep(1), [Sleep(2), Write("y", 1), Read("y")], False),
    ],
    ids=str,
)
def test_what_passes_a_value_on(
    publish: Instruction, receive: list[Instruction], expected: bool
) -> None:
    assert passes(publish, *receive) is expected


def test_joined_keeps_the_longer_clock() -> None:
    assert joined([1, 2], [3]) == [3, 2]
    assert joined([3], [1, 2]) == [3, 2]
    assert joined(None, [1]) == [1]
    assert joined([1], None) == [1]
    assert joined(None, None) is None
