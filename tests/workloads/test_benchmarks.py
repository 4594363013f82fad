"""The benchmark programs have the numbers of executions that the literature and arithmetic say.

They are counted here without any search of rcusim's, and optimal DPOR is held against the same
numbers.
"""

import pytest

from sim.errors import UsageError
from sim.execution import DEADLOCKED
from sim.explore import Budget, Explorer
from sim.strategies.dpor import Dpor
from sim.strategies.random_walk import RandomWalk
from sim.workload import Program, find, known
from tests.sim.classes import Ran, by_enumeration, by_reversal, deadlocks, run

Case = tuple[str, dict[str, int | bool], int]

#: Executions up to the order of independent steps, of programs that can be run in every order.
SMALL: list[Case] = [
    ("counter", {"n": 2, "k": 1}, 4),
    ("counter", {"n": 2, "k": 2}, 34),
    ("counter", {"n": 2, "k": 3}, 328),
    ("counter", {"n": 3, "k": 1}, 36),
    ("atomic_increment", {"n": 2}, 2),
    ("atomic_increment", {"n": 3}, 6),
    ("atomic_increment", {"n": 4}, 24),
    ("readers", {"n": 2}, 4),
    ("readers", {"n": 3}, 8),
    ("lastzero", {"n": 1}, 2),
    ("lastzero", {"n": 2}, 5),
    ("lastzero", {"n": 3}, 12),
    ("philosophers", {"n": 3}, 7),
    ("philosophers", {"n": 3, "ordered": True}, 6),
]

LARGER: list[Case] = [
    ("counter", {"n": 4, "k": 1}, 576),
    ("atomic_increment", {"n": 5}, 120),
    ("readers", {"n": 8}, 256),
    ("lastzero", {"n": 5}, 64),
    ("philosophers", {"n": 4}, 15),
    ("philosophers", {"n": 4, "ordered": True}, 14),
    ("philosophers", {"n": 5}, 31),
    ("philosophers", {"n": 5, "ordered": True}, 30),
    ("indexer", {"n": 11}, 1),
    ("indexer", {"n": 12}, 8),
    ("indexer", {"n": 13}, 64),
    ("filesystem", {"n": 13}, 1),
    ("filesystem", {"n": 14}, 2),
    ("filesystem", {"n": 16}, 8),
]

SLOW: list[Case] = [
    ("counter", {"n": 3, "k": 2}, 7134),
    ("lastzero", {"n": 10}, 3328),
    ("indexer", {"n": 14}, 512),
    ("filesystem", {"n": 18}, 32),
    ("filesystem", {"n": 19}, 64),
]


def program(name: str, params: dict[str, int | bool]) -> Program:
    return find(name).prepare(params)


@pytest.mark.parametrize(("name", "params", "number"), SMALL)
def test_all_interleavings_have_so_many_classes(
    name: str, params: dict[str, int | bool], number: int
) -> None:
    enumerated = by_enumeration(program(name, params))
    reversed_ = by_reversal(program(name, params))

    assert len(enumerated) == number
    assert enumerated.keys() == reversed_.keys()


@pytest.mark.parametrize(("name", "params", "number"), LARGER)
def test_reversals_lead_to_so_many_classes(
    name: str, params: dict[str, int | bool], number: int
) -> None:
    assert len(by_reversal(program(name, params))) == number


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params", "number"), SLOW)
def test_reversals_lead_to_so_many_classes_slow(
    name: str, params: dict[str, int | bool], number: int
) -> None:
    assert len(by_reversal(program(name, params))) == number


#: Larger, or too many to count without a search: numbers by the programs' docstrings.
SEARCHED: list[Case] = [
    ("indexer", {"n": 14}, 512),
    ("filesystem", {"n": 18}, 32),
]

SEARCHED_SLOW: list[Case] = [
    ("filesystem", {"n": 19}, 64),
    ("indexer", {"n": 15}, 4096),
    ("readers", {"n": 13}, 8192),
    ("lastzero", {"n": 10}, 3328),
    ("counter", {"n": 3, "k": 2}, 7134),
    ("counter", {"n": 2, "k": 5}, 34904),
    ("readers", {"n": 15}, 32768),
]

# lastzero of n=15 takes minutes: 147456 executions.


def searched(name: str, params: dict[str, int | bool]) -> tuple[int, int, int]:
    """Executions of optimal DPOR, among them: deadlocks, and those begun in vain."""
    strategy = Dpor()
    executions = stuck = 0
    while strategy.begin():
        executions += 1
        stuck += run(program(name, params), strategy).state == DEADLOCKED
    assert strategy.complete
    return executions, stuck, strategy.blocked


@pytest.mark.parametrize(("name", "params", "number"), SMALL + LARGER + SEARCHED)
def test_optimal_dpor_runs_each_class_once(
    name: str, params: dict[str, int | bool], number: int
) -> None:
    stuck = int(name == "philosophers" and not params.get("ordered"))

    assert searched(name, params) == (number, stuck, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params", "number"), SEARCHED_SLOW)
def test_optimal_dpor_runs_each_class_once_slow(
    name: str, params: dict[str, int | bool], number: int
) -> None:
    assert searched(name, params) == (number, 0, 0)


@pytest.mark.parametrize(("ordered", "number"), [(False, 1), (True, 0)])
def test_one_class_of_philosophers_starves(ordered: bool, number: int) -> None:
    assert deadlocks(by_enumeration(program("philosophers", {"ordered": ordered}))) == number


@pytest.mark.parametrize(
    ("name", "n"), [("counter", 2), ("atomic_increment", 2), ("readers", 2), ("lastzero", 3)]
)
def test_the_main_thread_takes_no_step_that_others_could_notice(name: str, n: int) -> None:
    strategy = RandomWalk(0)
    strategy.begin()
    ran: Ran = run(program(name, {"n": n}), strategy)

    assert "main" not in [step.thread for step in ran.steps]


BENCHMARKS = [
    name
    for name, made in known().items()
    if made.function.__module__.startswith("workloads.benchmarks.")
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nothing_but_the_deadlock_is_found(name: str) -> None:
    explorer = Explorer(find(name).prepare(), RandomWalk(0), Budget(executions=50), keep_going=True)
    result = explorer.explore()

    kinds = [found.finding.kind for found in result.findings]
    assert kinds == (["deadlock"] if name == "philosophers" else [])
    assert not result.races


@pytest.mark.parametrize(
    ("name", "params", "needed"),
    [
        ("counter", {"n": 0}, "--param n=0: a number of 1 or more is needed"),
        ("counter", {"k": 0}, "--param k=0: a number of 1 or more is needed"),
        ("atomic_increment", {"n": 0}, "1 or more"),
        ("philosophers", {"n": 1}, "2 or more is needed: a philosopher alone has one fork"),
        ("indexer", {"n": 33}, "1 to 32 is needed: the table has 128 cells, a thread fills 4"),
        ("filesystem", {"n": 27}, "1 to 26 is needed: there are 26 blocks"),
        ("readers", {"n": 0}, "1 or more"),
        ("lastzero", {"n": 0}, "1 or more"),
    ],
)
def test_parameters_out_of_range_are_refused(
    name: str, params: dict[str, int | bool], needed: str
) -> None:
    explorer = Explorer(program(name, params), RandomWalk(0), Budget(executions=2))

    with pytest.raises(UsageError, match=needed):
        explorer.explore()


@pytest.mark.parametrize(("name", "n"), [("indexer", 32), ("filesystem", 26)])
def test_the_largest_fits(name: str, n: int) -> None:
    explorer = Explorer(program(name, {"n": n}), RandomWalk(0), Budget(executions=2))

    assert explorer.explore().cut == 0
