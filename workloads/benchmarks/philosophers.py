"""Do n dining philosophers starve, each with a fork in the left hand?

Covers: locks, deadlock.
Scenario: philosopher i locks fork i, then fork i+1 (the last one: fork 0), and unlocks both.  With
ordered=yes everybody locks the fork of the lower number first.
Expect: a deadlock, once all have locked their first fork; none with ordered=yes.  Up to the order
of independent steps 2**n - 2 executions end well: every fork is used by two philosophers in one
order or the other, but not all in a circle.  The deadlock is one more.
"""

from __future__ import annotations

from sim.cells import Cell, Cells, Struct
from sim.macros import lock, unlock
from sim.memory import Memory
from sim.threads import Thread, spawn
from sim.workload import workload
from workloads.benchmarks.limits import within


class Table(Struct):
    """The forks: who has them."""

    KIND = "table"

    forks: Cells[Thread | None]

    def __init__(self, n: int) -> None:
        self.add_cells("forks", n, None)


async def dines(first: Cell[Thread | None], second: Cell[Thread | None]) -> None:
    await lock(first)
    await lock(second)
    await unlock(second)
    await unlock(first)


@workload()
async def philosophers(memory: Memory, *, n: int = 3, ordered: bool = False) -> None:
    within("n", n, 2, why="a philosopher alone has one fork")
    forks = memory.static(Table, n).forks
    for i in range(n):
        hands = (i, (i + 1) % n)
        first, second = sorted(hands) if ordered else hands
        await spawn(dines, forks[first], forks[second], name=f"philosopher{i}")
