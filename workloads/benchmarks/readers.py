"""In how many ways can n readers see one write?

Covers: READ_ONCE and WRITE_ONCE; reads that commute.
Scenario: one thread writes x; n threads write a variable of their own each and then read x.
Expect: no finding; 2**n executions up to the order of independent steps, for each reader comes
before or after the write, and readers do not meet each other.
"""

from __future__ import annotations

from sim.cells import Cell, Cells, Struct, cell
from sim.macros import READ_ONCE, WRITE_ONCE
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload
from workloads.benchmarks.limits import within


class Shared(Struct):
    """What the writer writes, and a variable for each reader."""

    KIND = "shared"

    x: Cell[int] = cell(0)
    own: Cells[int]

    def __init__(self, n: int) -> None:
        self.add_cells("own", n, 0)


async def writes(shared: Shared) -> None:
    await WRITE_ONCE(shared.x, 1)


async def reads(shared: Shared, i: int) -> None:
    await WRITE_ONCE(shared.own[i], 1)
    await READ_ONCE(shared.x)


@workload()
async def readers(memory: Memory, n: int = 2) -> None:
    within("n", n, 1)
    shared = memory.static(Shared, n)
    await spawn(writes, shared, name="writer")
    for i in range(n):
        await spawn(reads, shared, i, name=f"reader{i}")
