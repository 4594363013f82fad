"""What each strategy promises: exhaustive, bounded, lucky often enough, or repeatable."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.choosing import Strategy
from sim.errors import UsageError
from sim.strategies.dfs import Dfs
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices, Hold
from tests.programs.code import Choose, Code, Program, Read, Write
from tests.programs.drawing import programs
from tests.programs.running import Run, execute, view

FAST = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def steps(*lengths: int) -> Program:
    """Threads of so many steps each."""
    return Program(tuple((Read("x"),) * n for n in lengths))


def order(run: Run) -> str:
    """Which thread took each of the steps that the strategy could place, as digits."""
    return "".join(event.thread.name[1:] for event in run.events if event.op.name == "read")


def orders(program: Program, strategy: Strategy) -> list[str]:
    """The orders of all executions."""
    found: list[str] = []
    while strategy.begin():
        found.append(order(execute(program, strategy)))
    return found


def interleavings(*lengths: int) -> set[str]:
    letters = "".join(str(nth) * n for nth, n in enumerate(lengths))
    return {"".join(it) for it in itertools.permutations(letters)}


def preemptions(interleaving: str) -> int:
    """Switches away from a thread that had steps left."""
    return sum(
        a != b and a in interleaving[at + 1 :]
        for at, (a, b) in enumerate(itertools.pairwise(interleaving))
    )


# -- depth first ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(1,), (2, 3), (4, 4), (1, 2, 3), (2, 2, 2), (1, 1, 1, 1)])
def test_dfs_runs_every_interleaving_once(lengths: tuple[int, ...]) -> None:
    strategy = Dfs()
    found = orders(steps(*lengths), strategy)

    expected = math.factorial(sum(lengths)) // math.prod(map(math.factorial, lengths))
    assert len(found) == len(set(found)) == expected
    assert set(found) == interleavings(*lengths)
    assert strategy.complete


@pytest.mark.parametrize("bound", [0, 1, 2, 3])
@pytest.mark.parametrize("lengths", [(3, 3), (2, 2, 2)])
def test_dfs_runs_every_interleaving_within_its_bound(lengths: tuple[int, ...], bound: int) -> None:
    found = orders(steps(*lengths), Dfs(bound))

    assert len(found) == len(set(found))
    assert set(found) == {it for it in interleavings(*lengths) if preemptions(it) <= bound}


def test_dfs_takes_every_value() -> None:
    strategy = Dfs()
    seen: Counter[tuple[int, ...]] = Counter()
    while strategy.begin():
        run = execute(Program(((Choose(2), Choose(3)),)), strategy)
        seen[tuple(event.result for event in run.events if event.op.name == "choose")] += 1

    assert seen == dict.fromkeys(itertools.product(range(2), range(3)), 1)


def test_dfs_is_done_when_it_says_so() -> None:
    strategy = Dfs()
    assert strategy.begin()
    execute(steps(1), strategy)

    assert not strategy.begin()
    assert strategy.complete


# -- random --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RandomWalk, Pct])
def test_a_seed_gives_the_same_executions(kind: type[RandomWalk] | type[Pct]) -> None:
    def some(seed: int) -> list[str]:
        strategy = kind(seed)
        return [order(execute(steps(5, 5), strategy)) for _ in range(10) if strategy.begin()]

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_one_execution_of_a_walk_can_be_repeated_alone() -> None:
    strategy = RandomWalk(7)
    walked = [order(execute(steps(5, 5), strategy)) for _ in range(5) if strategy.begin()]
    alone = RandomWalk(7, first=3)
    alone.begin()

    assert order(execute(steps(5, 5), alone)) == walked[3]


def test_a_walk_gets_everywhere() -> None:
    strategy = RandomWalk(1)
    seen = Counter(order(execute(steps(2, 2), strategy)) for _ in range(600) if strategy.begin())

    assert set(seen) == interleavings(2, 2)


READ_ALL: Code = (Read("y"),) * 8
LOSES: Code = (*READ_ALL, Read("x"), Write("x"), *READ_ALL)


def loses_an_update(run: Run) -> bool:
    return bool(run.machine.shared.x.value == 1)


def hits(strategy: Strategy, program: Program, runs: int) -> float:
    """The share of executions in which both threads read before either writes."""
    found = 0
    for _ in range(runs):
        strategy.begin()
        found += loses_an_update(execute(program, strategy))
    return found / runs


def test_pct_keeps_its_guarantee_on_a_bug_of_depth_2() -> None:
    """A lost update takes one switch at the right step: at least 1 of n * k executions has it."""
    program = Program((LOSES, LOSES))
    steps_of_run = 2 * len(LOSES)
    guaranteed = 1 / (2 * steps_of_run)

    assert hits(Pct(3, depth=2), program, 1000) > 0.7 * guaranteed
    assert hits(Pct(3, depth=1), program, 100) == 0, "without a change of priority, no switch"


# -- replay --------------------------------------------------------------------------------------


@FAST
@given(programs(), st.integers(0, 99))
def test_choices_made_again_give_the_same_events(program: Program, seed: int) -> None:
    walk = RandomWalk(seed)
    walk.begin()
    run = execute(program, walk)
    again = Choices(run.execution.choices)
    assert again.begin()
    replayed = execute(program, again)

    assert [(e.thread.name, view(e)) for e in replayed.events] == [
        (e.thread.name, view(e)) for e in run.events
    ]
    assert replayed.execution.choices == run.execution.choices
    assert not again.begin(), "there is one execution to replay"


def only_run(program: Program, strategy: Strategy) -> str:
    assert strategy.begin()
    return order(execute(program, strategy))


@pytest.mark.parametrize(
    ("choices", "expected"), [((), "0011"), ((1,), "1001"), ((1, 1), "1100"), ((0, 1, 1), "0110")]
)
def test_past_its_end_a_choice_is_the_first(choices: Sequence[int], expected: str) -> None:
    assert only_run(steps(2, 2), Choices(choices)) == expected


def test_a_choice_among_too_few_threads() -> None:
    with pytest.raises(UsageError, match="choice 1 is 5, but there are 2 enabled threads: t0"):
        only_run(steps(2, 2), Choices([0, 5]))


@pytest.mark.parametrize(
    ("prefix", "victim", "expected"),
    [
        ((), "t0", "111000"),
        ((), "t1", "000111"),
        ((0,), "t0", "011100"),
        ((0, 1, 0), "t1", "010011"),
    ],
)
def test_hold_keeps_one_thread_back_as_long_as_it_can(
    prefix: Sequence[int], victim: str, expected: str
) -> None:
    assert only_run(steps(3, 3), Hold(prefix, victim)) == expected
