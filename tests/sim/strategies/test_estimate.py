"""Probes are right on average, and what a few of them say together mostly holds."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from random import Random
from typing import Any, cast

import pytest

from sim.sizing import Aside, each
from sim.strategies.estimate import HUGE, SpentError, estimate, growth, interval, probe
from sim.strategies.plans import WHOLE
from sim.totals import Budget
from sim.workload import find

Tree = tuple[Any, ...]  # an execution: the subtrees of the plans that it leads to

BUSH: Tree = ((), ((), ((),), ((), (), ((),))), (((),),), ())
SMALL = [
    ("counter", {"n": 2, "k": 1}),
    ("atomic_increment", {"n": 3}),
    ("philosophers", {"n": 4, "ordered": True}),
    ("indexer", {"n": 12}),
    ("lastzero", {"n": 3}),
    ("readers", {"n": 3}),
]


class Every:
    """All that could be drawn, one after the other; `share`: how likely that is."""

    def __init__(self) -> None:
        self.path: list[list[int]] = []
        self.depth = 0
        self.share = 1.0

    def sample(self, population: Sequence[int], k: int) -> tuple[int, ...]:
        draws = list(combinations(population, k))
        if self.depth == len(self.path):
            self.path.append([0, len(draws)])
        self.depth += 1
        self.share /= len(draws)
        return draws[self.path[self.depth - 1][0]]

    def next(self) -> bool:
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        self.depth, self.share = 0, 1.0
        return bool(self.path)


def mean(tree: Tree, width: int) -> float:
    """What probes of a tree say on average, by trying them all."""
    every, total, shares = Every(), 0.0, 0.0
    while True:
        number, exact = probe([tree], lambda plan: plan, width, cast(Random, every))
        total += every.share * number
        shares += every.share
        assert exact == (not every.path)
        if not every.next():
            assert shares == pytest.approx(1)
            return total


def size(tree: Tree) -> int:
    return 1 + sum(size(further) for further in tree)


def tree_of(name: str, params: dict[str, Any]) -> Tree:
    """The tree of all executions of a program."""
    runs = Aside(find(name).prepare(params), [], Budget().steps)

    def behind(plan: Any) -> Tree:
        runs.run(plan)
        return tuple(behind(further) for further in list(runs.led_to()))

    [root] = each(WHOLE)
    try:
        return behind(root)
    finally:
        runs.close()


@pytest.mark.parametrize("width", [1, 2, 3, 20])
def test_probes_are_right_on_average(width: int) -> None:
    assert mean(BUSH, width) == pytest.approx(size(BUSH))


@pytest.mark.parametrize(("name", "params"), SMALL)
@pytest.mark.parametrize("width", [1, 2])
def test_probes_of_programs_are_right_on_average(
    name: str, params: dict[str, Any], width: int
) -> None:
    tree = tree_of(name, params)

    assert size(tree) > 1
    assert mean(tree, width) == pytest.approx(size(tree))


def test_the_first_of_a_probe_is_among_all_that_are_left() -> None:
    drawn = {probe(BUSH, lambda plan: plan, 1, Random(seed))[0] for seed in range(50)}

    assert len(drawn) > len(BUSH)


def always(_more: int) -> bool:
    return True


def test_what_is_small_is_counted() -> None:
    found = estimate([BUSH], lambda plan: plan, always, Random(0))

    assert found is not None
    assert found.low == found.mean == found.high == size(BUSH)


def test_nothing_left_is_no_execution() -> None:
    found = estimate([], lambda plan: plan, always, Random(0))

    assert found is not None
    assert found.high == 0


def endless(_plan: int) -> Iterator[int]:
    return iter(range(3))


@pytest.mark.parametrize(("most", "told"), [(0, False), (30, False), (95, True)])
def test_fewer_than_three_probes_say_nothing(most: int, told: bool) -> None:
    ran = 0

    def behind(depth: int) -> Iterator[int]:
        nonlocal ran
        ran += 1
        if ran > most:
            raise SpentError
        return iter([depth + 1] * 2 if depth < 30 else [])

    assert (estimate([1], behind, always, Random(0)) is not None) == told


def test_more_time_makes_wider_rounds() -> None:
    tree: Tree = ()
    for _ in range(12):
        tree = (tree, tree[: len(tree) // 2], ())
    reach = []
    for allowed in (1, 300, 3000):
        ran = 0

        def behind(plan: Tree) -> Tree:
            nonlocal ran
            ran += 1
            return plan

        def fits(more: int) -> bool:
            return ran + more <= allowed  # noqa: B023  # called at once

        found = estimate([tree], behind, fits, Random(1))
        assert found is not None
        reach.append(found.high / found.low)

    assert reach == sorted(reach, reverse=True)


def test_the_interval_is_around_the_mean_and_as_wide_as_the_probes_scatter() -> None:
    near, far = interval([90, 100, 110, 100, 100]), interval([1, 10, 100, 1000, 100_000])

    assert near.low < near.mean == 100 < near.high
    assert near.high < 120
    assert far.low < 1000
    assert 20_000 < far.mean < far.high


@pytest.mark.parametrize(
    ("middles", "more"),
    [([5.0], 0), ([1.0, 3.0], 2), ([1.0, 4.0, 5.0], 2), ([4.0, 1.0, 3.0], 2), ([5.0, 4.0, 3.0], 0)],
)
def test_rounds_that_say_more_than_those_before_move_the_upper_end(
    middles: list[float], more: float
) -> None:
    numbers = [90, 100, 110]

    assert growth(middles) == more
    plain, moved = interval(numbers), interval(numbers, growth(middles))
    assert (moved.low, moved.mean) == (plain.low, plain.mean)
    assert moved.high == pytest.approx(plain.high * math.exp(more))


def test_what_is_too_large_for_numbers_is_huge() -> None:
    number, _ = probe([0, 1, 2], endless_until(3000), 1, Random(0))
    found = interval([number, number / 1e200, 1.0])

    assert math.isfinite(number)
    assert number >= HUGE
    assert math.isfinite(found.high)


def endless_until(depth: int) -> Any:
    ran = 0

    def behind(_plan: int) -> Iterator[int]:
        nonlocal ran
        ran += 1
        return endless(0) if ran < depth else iter([])

    return behind
