"""Negative controls: nothing is found in them, and something is once their condition is broken.

Each is run on the kernel that it is about; `HOLDS` says on which others nothing is found either.
"""

import math
from typing import Any

import pytest

from kernel_model.fixes import VERSIONS
from sim.choosing import Strategy
from sim.explore import Budget, Explorer, Result
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

EXECUTE = "use-after-free-execute"
UAF = "use-after-free"
FRAME = "corrupted-frame"
BUG = "kernel-bug"
LEAK = "memory-leak"

N1 = "n1_poke_dying_program"
N2 = "n2_tailcall_remove"
N3 = "n3_map_of_sleeping_program"
N4 = "n4_outer_map_free"
N5 = "n5_inner_map_swaps"
N6 = "n6_fentry_attach"
N7 = "n7_prog_array_insert_clear"
CONTROLS = [(N1, "5.10"), (N2, "5.10"), (N3, "5.10"), (N4, "5.10"), (N5, "6.8"), (N6, "5.10"),
            (N7, "5.10")]  # fmt: skip

FAST = 100
SLOW = 2_500  # all are proved, see test_proofs.py
FOUND_WITHIN = 300

Seeded = type[RandomWalk] | type[Pct]


def since(version: str) -> tuple[str, ...]:
    """The kernels from that one on."""
    return VERSIONS[VERSIONS.index(version) :]


HOLDS = {
    N1: VERSIONS,
    N2: VERSIONS,
    N3: since("5.10"),  # before, no program may sleep
    N4: VERSIONS,
    N5: ("5.5", "5.6", "5.8", *since("6.8")),
    N6: since("5.6"),
    N7: VERSIONS,
}


def explore(
    workload: str,
    strategy: Strategy,
    version: str = "5.10",
    executions: int = FAST,
    *,
    params: dict[str, Any] | None = None,
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
) -> Result:
    program = find(workload).prepare(params or {}, version=version, add=add, remove=remove)
    return Explorer(program, strategy, Budget(executions, math.inf)).explore()


def kinds(result: Result) -> list[str]:
    return [found.finding.kind for found in result.findings]


def assert_silent(result: Result, executions: int) -> None:
    assert kinds(result) == []
    assert result.races == []
    assert result.predicted == []
    assert result.executions == executions


# -- nothing is found ----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(("workload", "version"), CONTROLS)
def test_a_control_is_silent(workload: str, version: str, strategy: Seeded) -> None:
    assert_silent(explore(workload, strategy(0), version), FAST)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(("workload", "version"), CONTROLS)
def test_a_control_is_silent_for_long(workload: str, version: str, strategy: Seeded) -> None:
    assert_silent(explore(workload, strategy(1), version, SLOW), SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("workload", HOLDS)
def test_a_control_is_silent_on_every_kernel_where_it_holds(workload: str) -> None:
    for version in HOLDS[workload]:
        assert_silent(explore(workload, Pct(2), version, 50), 50)


@pytest.mark.parametrize(
    ("workload", "params"),
    [
        (N2, {"source": "subprog", "callers": "2"}),
        (N3, {"map_type": "hash"}),
        (N4, {"outer": "hash", "readers": "2"}),
        (N4, {"preempt": "none"}),
        (N6, {"programs": "3", "runs": "2"}),
        (N7, {"callers": "2"}),
    ],
    ids=str,
)
def test_a_control_is_silent_with_more(workload: str, params: dict[str, str]) -> None:
    assert_silent(explore(workload, Pct(0), executions=60, params=params), 60)


# -- the situation is there ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload", "version", "seen"),
    [
        (N1, "5.10", {((1,),), ((),)}),  # its sites stay as they are, so it never misses
        (N1, "6.7", {((1,),), ((99,),), ((),)}),
        (N2, "5.10", {((50,),), ((99,),)}),
        (N4, "5.10", {((100,),), ((),)}),
    ],
)
def test_what_the_readers_see(workload: str, version: str, seen: set[tuple[Any, ...]]) -> None:
    assert set(explore(workload, Pct(0), version).outcomes) == seen


def test_each_of_the_swaps_is_seen() -> None:
    result = explore(N5, Pct(0), "6.8")

    assert {value for seen in result.outcomes for (value,) in seen} == {100, 101, 102}


def test_either_of_the_insertion_and_the_clear_comes_first() -> None:
    result = explore(N7, Pct(0))

    assert {end for _, end in result.outcomes} == {"cleared", "inserted"}
    assert {value for (value,), _ in result.outcomes} == {50, 51, 99}


# -- something is found --------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(
    ("workload", "add", "found"),
    [
        (N1, "mutant:prog-free-no-gp", EXECUTE),
        (N4, "mutant:prog-free-no-gp", EXECUTE),
        (N6, "mutant:tramp-no-tasks", EXECUTE),
        (N7, "mutant:replace-unlocked", BUG),
    ],
)
def test_a_broken_rule_is_found(workload: str, add: str, found: str, strategy: Seeded) -> None:
    assert kinds(explore(workload, strategy(0), executions=FOUND_WITHIN, add=(add,))) == [found]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("workload", "add", "found"),
    [
        (N2, "mutant:remove-no-gp", FRAME),
        (N2, "mutant:remove-trace-gp", FRAME),
        (N3, "mutant:sleepable-call-rcu", EXECUTE),
        (N7, "mutant:install-swapped", FRAME),
    ],
)
def test_a_broken_rule_is_found_by_pct(workload: str, add: str, found: str, seed: int) -> None:
    assert kinds(explore(workload, Pct(seed), executions=FOUND_WITHIN, add=(add,))) == [found]


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(
    ("workload", "version", "remove", "found"),
    [(N5, "5.10", (), UAF), (N5, "6.8", ("876673364161",), UAF), (N6, "5.5", (), EXECUTE)],
)
def test_without_the_fix_it_is_found(
    workload: str, version: str, remove: tuple[str, ...], found: str, strategy: Seeded
) -> None:
    result = explore(workload, strategy(0), version, FOUND_WITHIN, remove=remove)

    assert kinds(result) == [found]


@pytest.mark.parametrize(
    ("workload", "params", "depth", "found"),
    [
        (N1, {"entered": "fentry", "tasks_rcu": "yes"}, 4, EXECUTE),
        (N3, {"second": "none"}, 3, EXECUTE),
        (N3, {"second": "attached"}, 3, EXECUTE),
        (N4, {"emptied": "yes"}, 3, UAF),
        (N7, {"kept": "no"}, 3, LEAK),
    ],
    ids=str,
)
def test_without_its_condition_a_control_is_not_silent(
    workload: str, params: dict[str, str], depth: int, found: str
) -> None:
    result = explore(workload, Pct(1, depth), executions=FOUND_WITHIN, params=params)

    assert kinds(result) == [found]
