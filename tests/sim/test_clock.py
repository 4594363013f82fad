"""Virtual time: stands still while threads run, moves to the deadline of who wakes."""

from collections.abc import Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.clock import now, sleep
from sim.execution import Execution
from sim.hosts import direct
from sim.macros import outcome
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from sim.threads import spawn

FAST = settings(max_examples=30, derandomize=True, deadline=None, database=None)


def every_run(*sleeps: tuple[int, ...]) -> set[tuple[tuple[str, int], ...]]:
    """When each thread wakes from each of its sleeps, in order of waking, in every run."""

    async def sleeper(durations: tuple[int, ...]) -> None:
        for duration in durations:
            await sleep(duration)
            await outcome(await now())

    def main() -> Coroutine[Any, Any, None]:
        async def forks() -> None:
            for nth, durations in enumerate(sleeps):
                await spawn(sleeper, durations, name=f"t{nth}")

        return forks()

    seen: set[tuple[tuple[str, int], ...]] = set()
    strategy = Dfs()
    while strategy.begin():
        execution = Execution(main, Memory(), strategy)
        direct.run(execution)
        seen.add(tuple(execution.outcomes))
    return seen


def test_time_moves_to_the_deadline() -> None:
    assert every_run((5, 7, 0)) == {(("t0", 5), ("t0", 12), ("t0", 12))}


def test_a_sleeper_wakes_in_the_order_of_deadlines_or_late() -> None:
    """Unless the other has not gone to sleep yet: a thread may be slow to take its next step."""
    seen = every_run((5,), (3,))

    both_asleep = {order for order in seen if dict(order) == {"t0": 5, "t1": 3}}
    assert both_asleep == {(("t1", 3), ("t0", 5))}
    assert (("t0", 5), ("t1", 8)) in seen, "the other went to sleep only then"


def test_equal_deadlines_wake_in_any_order() -> None:
    seen = every_run((4,), (4,))

    assert {tuple(name for name, _ in order) for order in seen} == {("t0", "t1"), ("t1", "t0")}


@FAST
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2), min_size=1, max_size=2))
def test_time_never_goes_back_and_nobody_wakes_early(sleeps: list[list[int]]) -> None:
    for order in every_run(*map(tuple, sleeps)):
        times = [time for _, time in order]
        assert times == sorted(times)
        for nth, durations in enumerate(sleeps):
            woken = [time for name, time in order if name == f"t{nth}"]
            starts = [0, *woken]
            for start, time, duration in zip(starts, woken, durations, strict=False):
                assert time >= start + duration
