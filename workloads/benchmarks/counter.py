"""In how many ways can n threads do "t = x; x = t + 1" k times each?

Covers: READ_ONCE and WRITE_ONCE of one variable, by everybody.
Scenario: n threads share one counter; each reads it and writes it back plus one, k times.
Expect: no finding, for marked accesses do not race, they only lose updates.  Up to the order of
independent steps there are, for (n, k): (2, 1) 4, (2, 2) 34, (2, 3) 328, (2, 5) 34904, (3, 1) 36,
(3, 2) 7134, (4, 1) 576 executions.
"""

from __future__ import annotations

from sim.cells import Cell, Struct, cell
from sim.macros import READ_ONCE, WRITE_ONCE
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload
from workloads.benchmarks.limits import within


class Counter(Struct):
    """The shared variable."""

    KIND = "counter"

    x: Cell[int] = cell(0)


async def increments(counter: Counter, k: int) -> None:
    for _ in range(k):
        t = await READ_ONCE(counter.x)
        await WRITE_ONCE(counter.x, t + 1)


@workload()
async def counter(memory: Memory, n: int = 2, k: int = 1) -> None:
    within("n", n, 1)
    within("k", k, 1)
    shared = memory.static(Counter)
    for i in range(n):
        await spawn(increments, shared, k, name=f"thread{i}")
