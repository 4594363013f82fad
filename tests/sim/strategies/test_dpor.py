"""Optimal DPOR runs one execution of every class of executions, and none in vain.

Random small programs are explored by it and by brute force; both must see the same outcomes, the
same findings and the same classes (`tests.sim.strategies.against_dfs`).  What a class is:
`tests.sim.classes`; in short, the order of dependent visible steps.  The end of a section and the
end of a grace period are not compared, for the order of SECTION_BEGIN and GP_START decides in which
order they come: `History._ended` counts on that.

That these tests can fail is shown in tests/quality/test_dpor_mutants.py.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis.strategies import SearchStrategy

from sim.cells import Cell, Struct, cell
from sim.errors import NondeterminismError
from sim.execution import Execution
from sim.explore import Budget, Explorer
from sim.hosts import direct
from sim.macros import READ_ONCE, WRITE_ONCE, choose
from sim.memory import Memory
from sim.run import run_once
from sim.strategies import dpor
from sim.strategies.dpor import Dpor
from sim.threads import Body, spawn
from sim.workload import find
from tests.programs.code import Await, Held, Meet, Program, Write
from tests.programs.drawing import ALL, Features, only, programs
from tests.programs.running import TooMany
from tests.sim.strategies.against_dfs import difference, search
from tests.sim.strategies.examples import EXAMPLES, READ

ROOT = Path(__file__).parents[3]
SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
MANY = 1000  # programs of each group in the slow test
FEW = 50

MEETINGS = replace(only("accesses", "atomics", "locks", "forks", "meetings"), cells=("x", "y", "z"))
CPUS = only("accesses", "locks", "waits", "checks", "cpus", "hogs")
#: The features of programs, how many threads, instructions of a thread, instructions in all.
GROUPS: dict[str, tuple[Features, tuple[int, int], int, int]] = {
    "memory": (only("accesses", "atomics", "fences"), (2, 4), 3, 7),
    "locks": (only("locks", "atomics"), (2, 4), 3, 7),
    "grace periods": (only("accesses", "sections"), (2, 4), 2, 6),
    "calls after grace periods": (only("accesses", "sections", "forks"), (2, 3), 2, 6),
    "nested forks": (only("accesses", "forks", "locks"), (2, 3), 3, 8),
    "choices": (only("accesses", "choices", "atomics"), (2, 4), 3, 7),
    "waits": (only("accesses", "waits", "atomics"), (2, 4), 3, 7),
    "waits for several cells": (MEETINGS, (2, 4), 3, 8),
    "objects and bytes": (only("objects", "sections", "regions"), (2, 3), 2, 5),
    "fatal checks": (only("accesses", "checks", "waits", "forks"), (2, 4), 3, 7),
    "fatal checks of readers": (only("accesses", "checks", "sections"), (2, 4), 2, 6),
    "fatal choices": (only("accesses", "risks"), (2, 4), 3, 7),
    "fatal choices and waits": (
        only("accesses", "choices", "risks", "checks", "forks", "locks"),
        (2, 3),
        4,
        8,
    ),
    "time": (only("accesses", "time", "locks"), (2, 4), 3, 6),
    "all": (replace(ALL, cpus=False), (2, 4), 3, 8),
    "shared CPUs": (only("accesses", "cpus", "hogs"), (2, 3), 3, 7),
    "locks and waits on shared CPUs": (CPUS, (2, 3), 3, 7),
    "grace periods on shared CPUs": (
        only("accesses", "sections", "forks", "cpus", "hogs"),
        (2, 3),
        3,
        6,
    ),
    "all on shared CPUs": (ALL, (2, 3), 3, 7),
}


def group(name: str) -> SearchStrategy[Program]:
    features, threads, length, weight = GROUPS[name]
    return programs(features, threads=threads, length=length, weight=weight)


def check(name: str, number: int) -> None:
    """Hold DPOR against brute force on `number` programs of that group."""
    tried = 0

    @settings(SETTINGS, max_examples=number)
    @given(group(name))
    def like_brute_force(program: Program) -> None:
        nonlocal tried
        try:
            told = difference(program)
        except TooMany:
            assume(False)
        assert told == ""
        tried += 1

    like_brute_force()

    assert tried >= number, tried  # those with too many interleavings do not count


@pytest.mark.parametrize("name", GROUPS)
def test_small_programs_are_explored_as_by_brute_force(name: str) -> None:
    check(name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_many_programs_are_explored_as_by_brute_force(name: str) -> None:
    check(name, MANY)


@pytest.mark.parametrize("name", ["memory", "fatal checks", "all"])
def test_a_search_that_puts_everything_off_explores_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpor, "MANY", 0)
    check(name, FEW // 2)


def test_what_is_put_off_is_no_more_than_steps_that_are_fixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So there are at most as many of these lists as an execution has steps."""
    monkeypatch.setattr(dpor, "MANY", 0)
    program = find("lastzero").prepare({"n": 7})
    strategy = Dpor()
    most, executions = 0, 0
    while strategy.begin():
        steps = strategy._history.steps[: strategy.kept]
        fixed = sum(step.lead is not None for step in steps) + len(strategy._ahead)
        assert len(strategy._later) <= fixed + 1
        most = max(most, len(strategy._later))
        executions += 1
        run_once(program, strategy)
    assert executions == 320
    assert most > 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_explored_as_by_brute_force(name: str) -> None:
    assert difference(EXAMPLES[name], limit=1000) == ""


def test_a_program_that_shares_a_cpu_is_explored_as_by_brute_force() -> None:
    holds_it, reads = (Held((READ,)),), (READ,)

    assert difference(Program((holds_it, reads), cpus=(0, 0))) == ""
    assert difference(Program((reads, (Held((Write("x", 1),)),)), cpus=(0, 0))) == ""


@pytest.mark.parametrize(
    ("program", "executions"),
    [
        # before both writes or behind one of them, while they do not lead away from each other
        (Program(((Meet(("x", "y"), "not both"),), (READ,), (Write("y", 1),))), 2),
        # before both writes, and behind both: come to by either
        (Program(((Meet(("x", "y")),), (Write("x", 1),), (Write("y", 1),))), 3),
        # the same, begun from behind both
        (Program(((Write("x", 1),), (Write("y", 1),), (Meet(("x", "y")), Write("z", 1)))), 2),
    ],
)
def test_a_wait_for_several_cells_comes_before_several_writes(
    program: Program, executions: int
) -> None:
    assert difference(program) == ""
    assert search(program, Dpor(), None, 10).executions == executions


def test_who_waits_on_a_shared_cpu_is_explored_as_by_brute_force() -> None:
    waits, holds_it = (Await("x"),), (Held((READ,)),)

    assert difference(Program((waits, holds_it), cpus=(0, 0))) == ""


# -- determinism ---------------------------------------------------------------------------------


class Shared(Struct):
    x: Cell[int] = cell(0)


Main = Callable[[], Body]


def run_all(main: Callable[[Memory], Main]) -> Dpor:
    strategy = Dpor()
    while strategy.begin():
        memory = Memory()
        direct.run(Execution(main(memory), memory, strategy))
    return strategy


def test_threads_that_depend_on_earlier_executions_are_noticed() -> None:
    runs: list[int] = []

    def program(memory: Memory) -> Main:
        shared = memory.static(Shared)
        runs.append(1)

        async def writes() -> None:
            await WRITE_ONCE(shared.x, 1)

        async def main() -> None:
            for _ in range(2 if len(runs) == 1 else 1):
                await spawn(writes)

        return main

    with pytest.raises(NondeterminismError, match="state kept between executions"):
        run_all(program)


def test_choices_that_depend_on_earlier_executions_are_noticed() -> None:
    runs: list[int] = []

    def program(memory: Memory) -> Main:
        shared = memory.static(Shared)
        runs.append(1)

        async def chooses() -> None:
            await READ_ONCE(shared.x)
            await choose(3 if len(runs) < 3 else 2)

        async def main() -> None:
            await spawn(chooses)

        return main

    with pytest.raises(NondeterminismError, match="a choice had more than 2 values"):
        run_all(program)


def test_a_search_that_is_interrupted_is_not_complete() -> None:
    strategy = Dpor()
    explorer = Explorer(find("counter").prepare({"k": 2}), strategy, Budget(executions=33))
    result = explorer.explore()

    assert not strategy.complete
    assert not result.complete
    assert result.verdict == "inconclusive"


def test_one_that_has_just_begun_its_last_execution_is_not_complete() -> None:
    result = Explorer(find("counter").prepare(), Dpor(), Budget(executions=4)).explore()
    assert (result.complete, result.verdict) == (False, "inconclusive")

    result = Explorer(find("counter").prepare(), Dpor(), Budget(executions=5)).explore()
    assert (result.complete, result.verdict) == (True, "proved")


def test_the_same_executions_in_every_process() -> None:
    """Whatever the hash of a string is: every choice of every execution is the same."""
    told = {
        subprocess.run(
            [sys.executable, "-c", TELLS],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }

    assert len(told) == 1
    assert len(told.pop().splitlines()) == 49 + 34


TELLS = """
from sim.run import run_once
from sim.run import run_once
from sim.strategies import dpor
from sim.strategies.dpor import Dpor
from sim.workload import find

for program in (
    find("inner_map_replace").prepare({}, version="6.8"),
    find("counter").prepare({"k": 2}),
):
    strategy = Dpor()
    while strategy.begin():
        print(run_once(program, strategy).execution.choices)
"""
