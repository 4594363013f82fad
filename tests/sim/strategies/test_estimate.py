"""What a search that is not over says about its size: a bound that holds, and a guess near it."""

import pytest

from sim.explore import Budget, Explorer, Result
from sim.strategies.dpor import Dpor
from sim.strategies.estimate import Tally
from sim.workload import find

KNOWN = [
    ("readers", {"n": 8}, 256),
    ("lastzero", {"n": 7}, 320),
    ("counter", {"n": 2, "k": 3}, 328),
    ("atomic_increment", {"n": 5}, 120),
    ("filesystem", {"n": 18}, 32),
]
FACTOR = 10  # after a tenth of the search


def explored(name: str, params: dict[str, int], executions: int) -> Result:
    program = find(name).prepare(dict(params))
    return Explorer(program, Dpor(), Budget(executions=executions)).explore()


@pytest.mark.parametrize(("name", "params", "classes"), KNOWN)
@pytest.mark.parametrize("tenths", [1, 3, 6, 9])
def test_classes_are_no_fewer_than_said_and_about_as_many_as_guessed(
    name: str, params: dict[str, int], classes: int, tenths: int
) -> None:
    done = max(2, classes * tenths // 10)
    result = explored(name, params, done)

    assert result.at_least is not None
    assert result.estimate is not None
    assert done <= result.at_least <= classes
    assert classes / FACTOR <= result.estimate <= classes * FACTOR


def test_a_search_that_is_over_has_nothing_to_guess() -> None:
    result = explored("readers", {"n": 2}, 100)

    assert result.complete
    assert (result.estimate, result.at_least) == (None, None)


def test_branches_count_as_much_as_the_one_finished_last() -> None:
    tally = Tally()
    assert tally.estimate([]) is None
    tally.ended(2)
    tally.back(1)  # the second of three branches behind the first of two
    tally.ended(2)

    assert tally.estimate([1, 1]) == 2 * 3
