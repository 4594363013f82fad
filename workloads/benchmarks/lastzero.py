"""In how many ways can one thread look for the last zero of an array that n others fill?

Covers: READ_ONCE and WRITE_ONCE; what a thread reads next depends on what it has read.
Scenario: cells 0 to n are 0.  Thread j of 1 to n writes into cell j what it read from cell j-1,
plus 1; thread 0 reads the cells from the last one down to the first that is 0.  After Abdulla,
Aronis, Jonsson and Sagonas, "Optimal Dynamic Partial Order Reduction", POPL 2014.
Expect: no finding; (n + 3) * 2**(n - 2) executions up to the order of independent steps, for n of
2 or more: 64 for n=5, 3328 for 10, 147456 for 15.
"""

from __future__ import annotations

from sim.cells import Cells, Struct
from sim.macros import READ_ONCE, WRITE_ONCE
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload
from workloads.benchmarks.limits import within


class Array(Struct):
    """The cells 0 to n."""

    KIND = "array"

    a: Cells[int]

    def __init__(self, n: int) -> None:
        self.add_cells("a", n + 1, 0)


async def searches(array: Array, n: int) -> None:
    i = n
    while await READ_ONCE(array.a[i]) != 0:
        i -= 1


async def fills(array: Array, j: int) -> None:
    await WRITE_ONCE(array.a[j], await READ_ONCE(array.a[j - 1]) + 1)


@workload()
async def lastzero(memory: Memory, n: int = 5) -> None:
    within("n", n, 1)
    array = memory.static(Array, n)
    await spawn(searches, array, n, name="thread0")
    for j in range(1, n + 1):
        await spawn(fills, array, j, name=f"thread{j}")
