"""A bounded partial-order reduction loses no outcome and no finding within its bound.

Held against all executions with so few preemptions, on random programs; and whatever is left out
of the reduction is noticed.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis.errors import NoSuchExample

from sim.detectors import standard_detectors
from sim.strategies.bounded import Bounded
from sim.strategies.dfs import Dfs
from sim.strategies.joint import Joint
from sim.strategies.races import Races
from sim.strategies.steps import Step
from tests.programs.code import Await, Choose, Fork, Locked, Modify, Program, Read, Swap, Write
from tests.programs.drawing import ALL, only, programs
from tests.programs.running import Outcome, TooMany, execute

FAST = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SLOW = settings(FAST, max_examples=400)
SEARCH = settings(FAST, max_examples=500, phases=[Phase.generate])
BOUNDS = (0, 1, 2)
LIMIT = 1_000
FEATURES = {
    "cells": only("accesses", "atomics"),
    "locks": only("locks", "atomics"),
    "waits": only("locks", "waits", "atomics", "accesses"),
    "sections": only("accesses", "sections", "objects"),
    "forks": only("accesses", "forks", "locks"),
    "choices": only("accesses", "choices"),
    "meetings": replace(only("accesses", "locks", "meetings"), cells=("x", "y")),
    "all": replace(ALL, cpus=False, time=False),
}
DRAWN = {
    name: programs(features, threads=(2, 4), length=3, weight=7)
    for name, features in FEATURES.items()
}

Seen = tuple[set[Outcome], set[tuple[str, str]]]


def seen(program: Program, strategy: Bounded | Dfs) -> tuple[Seen, Counter[int]]:
    """Outcomes and findings; and the executions it took, by the bound that was searched.

    What a fatal finding cuts off is no outcome.  Who is named in a data race may depend on the
    order of independent reads (`DataRace` reports one race of two functions on a place).
    """
    outcomes: set[Outcome] = set()
    findings: set[tuple[str, str]] = set()
    executions: Counter[int] = Counter()
    while strategy.begin():
        executions[getattr(strategy, "within", 0)] += 1
        if executions.total() > LIMIT:
            raise TooMany
        run = execute(program, strategy, standard_detectors)
        if run.execution.state != "finding":
            outcomes.add(run.outcome)
        findings |= {finding.key[:2] for finding in run.execution.findings}
    assert strategy.complete
    return (outcomes, findings), executions


def differs(program: Program) -> bool:
    """Whether the reduction sees anything else than all executions within the bound."""
    return any(seen(program, Bounded(k))[0] != seen(program, Dfs(k))[0] for k in BOUNDS)


def compare(program: Program) -> None:
    try:
        assert not differs(program)
    except TooMany:
        assume(False)


@pytest.mark.parametrize("features", FEATURES)
def test_no_outcome_and_no_finding_within_the_bound_is_lost(features: str) -> None:
    FAST(given(DRAWN[features])(compare))()


@pytest.mark.slow
@pytest.mark.parametrize("features", FEATURES)
def test_none_of_many_programs_is_lost(features: str) -> None:
    SLOW(given(DRAWN[features])(compare))()


# -- how many executions -------------------------------------------------------------------------

LOCKERS = Program(((Locked("a", (Modify("x"),)),) * 2,) * 2 + ((Modify("y"), Modify("y")),))


def test_executions_that_differ_in_the_order_of_independent_steps_are_mostly_not_run() -> None:
    (_, reduced), (_, everything) = seen(LOCKERS, Bounded(2)), seen(LOCKERS, Dfs(2))

    assert everything.total() == 140
    assert reduced == {0: 2, 1: 8, 2: 16}


def test_a_bound_that_keeps_nothing_from_being_tried_is_the_last() -> None:
    _, executions = seen(Program(((Write("x", 1),), (Write("x", 2),))), Bounded(9))

    assert set(executions) == {0}


def test_choosing_a_value_is_no_occasion_for_a_preemption() -> None:
    program = Program(((Modify("x"), Choose(), Modify("x")), (Modify("x"),)))

    assert seen(program, Bounded(0))[1] == {0: 4}
    assert seen(program, Bounded(1))[1] == {0: 4, 1: 6}


# -- what is left out is noticed -----------------------------------------------------------------


def is_noticed(features: str) -> bool:
    try:
        find(DRAWN[features], _differs, settings=SEARCH)
    except NoSuchExample:
        return False
    return True


def _differs(program: Program) -> bool:
    try:
        return differs(program)
    except TooMany:
        return False


def test_leaving_out_the_conservative_points_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounded, "_block", lambda _self, index: index)

    assert is_noticed("cells")


def test_dropping_a_race_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_self: Bounded, _step: Step) -> Iterator[int]:
        return iter(())

    monkeypatch.setattr(Bounded, "_enabled_by", nothing)  # races are among those steps, too
    push = Races.push

    def forgetful(self: Races, event: object) -> Step:
        step = push(self, event)  # type: ignore[arg-type]  # an event
        step.races = step.races[1:]
        return step

    monkeypatch.setattr(Races, "push", forgetful)

    assert is_noticed("cells")


def test_leaving_out_threads_that_wait_for_ever_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Races, "pending_races", lambda _self: iter(()))

    assert is_noticed("waits")


def test_leaving_out_waits_for_several_cells_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Joint, "cuts", lambda *_: [])

    assert is_noticed("meetings")


def test_trying_only_the_thread_of_the_second_step_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_it(self: Bounded, first: int, second: Step) -> None:
        for index in {first, self._block(first)}:
            if second.key in self._places[index].able:
                self._turn(index, (second.key, 0))

    program = Program(((Modify("x"),), (Fork((Modify("x"),), joined=True), Read("x"))))
    assert not differs(program)
    monkeypatch.setattr(Bounded, "_reverse", only_it)

    assert is_noticed("forks")


HANDED_OVER = Program(
    (
        (Write("y", 1),),
        (Modify("x"), Locked("a", (Modify("x"),))),
        (Swap("x", 5),),
        (Locked("a", (Await("y"),)),),
    )
)


def test_what_others_can_do_for_nothing_depends_on_who_has_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second thread is passed by the third for nothing only where it waits for the fourth."""
    assert not differs(HANDED_OVER)
    monkeypatch.setattr(Bounded, "_enabled_by", lambda _self, _step: iter(()))

    assert differs(HANDED_OVER)
