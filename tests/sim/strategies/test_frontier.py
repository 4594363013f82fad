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
from sim.strategies.frontier import Frontier
from sim.strategies.units import Report, Unit
from tests.programs.code import Program, Read, Swap
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


def explore(program: Program, unit: Unit, executions: int) -> tuple[Report, Counter[Any]]:
    """A slice, as a worker does it."""
    search = Dpor.unpacked(through_json(unit.packed))
    seen: Counter[Any] = Counter()
    left = None
    while search.begin():
        if seen.total() == executions:
            left = search.packed()
            break
        seen[order(execute(program, search))] += 1
    assert not search.blocked
    explored = search.explored()
    told = [search.led(), search.table.packed, search.exports, explored, left]
    return Report(*through_json(told)), seen


def shared(program: Program, random: Random) -> Counter[Any]:
    """The classes of a search whose units come back late, in any order, some of them never."""
    search = Dpor()
    search.begin()
    frontier = Frontier.of(through_json(search.packed()))
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
            frontier = Frontier.unpacked(through_json(frontier.packed()))
            flying.clear()
        else:
            report, new = explore(program, unit, random.choice((1, 1, 2, 5, 30)))
            frontier.done_with(unit, report)
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


@pytest.mark.parametrize("seed", range(40))
def test_an_order_that_comes_back_late_goes_behind_inner_branches(seed: int) -> None:
    """What sleeps behind the inner branch keeps the search there from finding it by itself."""
    swapping = (Read("x", ops.PLAIN), Swap("x", 0))
    program = Program(((Read("x", ops.PLAIN),), swapping, (Read("x", ops.PLAIN),)), (None,) * 3)

    check(program, seed)


def test_a_frontier_that_was_not_shared_is_a_search_again() -> None:
    program = Program(((Swap("x", 1), Swap("x", 2)), (Swap("x", 3), Swap("x", 4))), (None, None))
    expected = whole(program)
    search = Dpor()
    seen: Counter[Any] = Counter()
    while search.begin():
        packed = Frontier.unpacked(through_json(Frontier.of(search.packed()).packed())).whole()
        assert packed is not None
        search = Dpor.unpacked(packed)
        assert search.begin()
        assert search.packed() == packed  # also before it has gone on
        seen[order(execute(program, search))] += 1

    assert seen == expected
