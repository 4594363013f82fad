"""How many increments survive when n threads each do "t = x; x = t + 1" k times?

Covers: READ_ONCE and WRITE_ONCE, lost updates.
Scenario: n threads share one counter; each reads it and writes it back plus one, k times.
Expect: every value from 2 (k > 1; else 1) to n*k as an outcome, and no finding: marked accesses
do not race, they only lose updates.
"""

from __future__ import annotations

from sim.cells import Cell, Struct, cell
from sim.macros import READ_ONCE, WRITE_ONCE, join, outcome
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload


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
    shared = memory.static(Counter)
    threads = [await spawn(increments, shared, k, name=f"thread{i}") for i in range(n)]
    for thread in threads:
        await join(thread)
    await outcome(await READ_ONCE(shared.x))
