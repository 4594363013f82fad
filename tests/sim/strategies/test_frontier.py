"""A shared search explores the classes of the whole one, each once, however it is cut."""

import json
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim import ops
from sim.strategies.dpor import Dpor
from sim.strategies.frontier import Frontier, Unit
from sim.strategies.steps import Packed
from tests.programs.code import Program, Swap
from tests.programs.drawing import ALL, only, programs
from tests.programs.running import ENGINE, Run, execute, histories

LIMIT = 300  # executions of a program
FEATURES = {
    "accesses": only("accesses", "atomics"),
    "choices": only("accesses", "choices", "locks"),
    "locks": only("locks", "atomics"),
    "waits": only("accesses", "waits", "atomics"),
    "forks": only("accesses", "forks", "locks"),
    "readers": only("accesses", "sections"),
    "objects": only("objects", "sections"),
    "all": replace(ALL, cpus=False),
}


def order(run: Run) -> Any:
    """The class of an execution: which of two dependent steps comes first, and what they saw."""
    events = [event for event in run.events if event.op.kind not in ENGINE]
    taken: Counter[str] = Counter()
    names = []
    for event in events:
        names.append((event.thread.name, taken[event.thread.name]))
        taken[event.thread.name] += 1
    pairs = {
        (names[i], names[j])
        for j, late in enumerate(events)
        for i, early in enumerate(events[:j])
        if {early.op.kind, late.op.kind} != {ops.SECTION_END, ops.GP_END}
        and ops.dependent(early.op, late.op)
    }
    return run.execution.state, histories(run.events), frozenset(pairs)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def whole(program: Program) -> Counter[Any] | None:
    """The classes of a search that nobody cuts; None: too many."""
    search = Dpor()
    seen: Counter[Any] = Counter()
    while search.begin():
        seen[order(execute(program, search))] += 1
        if seen.total() > LIMIT:
            return None
    return seen


def explore(program: Program, unit: Unit, executions: int) -> tuple[Any, Counter[Any]]:
    """A slice, as a worker does it: what is left, and the classes that were seen."""
    search = Dpor(through_json(unit.packed))
    seen: Counter[Any] = Counter()
    while search.begin() and seen.total() < executions:
        seen[order(execute(program, search))] += 1
    assert not search.blocked
    return through_json(search.packed()), seen


def shared(program: Program, random: Random) -> Counter[Any]:
    """The classes of a search whose units come back late, in any order, some of them never."""
    frontier = Frontier()
    flying: list[Unit] = []
    seen: Counter[Any] = Counter()
    while not frontier.done:
        while len(flying) < random.choice((1, 2, 4)) and (unit := frontier.claim()) is not None:
            flying.append(unit)
        unit = flying.pop(random.randrange(len(flying)))
        fate = random.random()
        if fate < 0.1:
            frontier.give_back(unit)
        elif fate < 0.15:  # everybody is killed
            frontier = Frontier(through_json(frontier.packed()))
            flying.clear()
        else:
            left, new = explore(program, unit, random.choice((1, 1, 2, 5, 30)))
            frontier.done_with(unit, left)
            seen += new
        assert seen.total() <= 2 * LIMIT
    return seen


def check(program: Program, seed: int) -> None:
    expected = whole(program)
    if expected is not None:
        assert shared(program, Random(seed)) == expected
        assert set(expected.values()) == {1}


@pytest.mark.parametrize("features", FEATURES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_shared_search_runs_every_class_once(
    features: str, data: st.DataObject, seed: int
) -> None:
    drawn = programs(FEATURES[features], threads=(2, 3), length=3, weight=8)
    check(data.draw(drawn), seed)


@pytest.mark.slow
@pytest.mark.parametrize("features", FEATURES)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_shared_search_of_many_programs(features: str, data: st.DataObject, seed: int) -> None:
    drawn = programs(FEATURES[features], threads=(2, 4), length=3, weight=9)
    check(data.draw(drawn), seed)


def number(left: Packed) -> int:
    return sum(len(plans) for _, plans in left[1])


def test_plans_are_counted_whoever_has_them() -> None:
    program = Program(((Swap("x", 1), Swap("x", 2)), (Swap("x", 3), Swap("x", 4))), (None, None))
    frontier = Frontier()
    unit = frontier.claim()
    assert unit is not None
    assert (frontier.free(), frontier.claim(), frontier.done) == (0, None, False)

    left, _ = explore(program, unit, 1)
    frontier.done_with(unit, left)
    assert frontier.free() == number(left) == 1

    again = Frontier(through_json(frontier.packed()))
    assert again.packed() == frontier.packed()
    assert again.claim() is not None
    assert number(again.packed()) == 1  # what is in other hands is left, too


def test_a_search_can_be_cut_after_every_execution() -> None:
    program = Program(((Swap("x", 1), Swap("x", 2)), (Swap("x", 3), Swap("x", 4))), (None, None))
    expected = whole(program)
    search = Dpor()
    seen: Counter[Any] = Counter()
    while search.begin():
        packed = through_json(search.packed())
        search = Dpor(packed)
        assert search.begin()
        assert through_json(search.packed()) == packed  # also before it has gone on
        seen[order(execute(program, search))] += 1

    assert seen == expected
