"""In how many ways can n threads fill a hash table of which they share few cells?

Covers: cmpxchg, of cells that few threads have in common.
Scenario: n threads put 4 messages each into a table of 128 cells, at their hash or, where that is
taken, in the next cell that is free.  After Flanagan and Godefroid, "Dynamic Partial-Order
Reduction for Model Checking Software", POPL 2005.
Expect: no finding.  Up to 11 threads share no cell, so there is 1 execution up to the order of
independent steps; each thread beyond them meets an earlier one in 3 cells: 8 for n=12, 64 for 13,
512 for 14, 4096 for 15.
"""

from __future__ import annotations

from sim.cells import Cells, Struct
from sim.macros import cmpxchg
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload
from workloads.benchmarks.limits import within

SIZE = 128
MESSAGES = 4  # of each thread


class Table(Struct):
    """The hash table; 0 is a free cell."""

    KIND = "table"

    cells: Cells[int]

    def __init__(self) -> None:
        self.add_cells("cells", SIZE, 0)


async def inserts(table: Table, tid: int) -> None:
    for m in range(1, MESSAGES + 1):
        w = m * 11 + tid
        h = (w * 7) % SIZE
        while await cmpxchg(table.cells[h], 0, w) != 0:
            h = (h + 1) % SIZE


@workload()
async def indexer(memory: Memory, n: int = 12) -> None:
    within("n", n, 1, SIZE // MESSAGES, f"the table has {SIZE} cells, a thread fills {MESSAGES}")
    table = memory.static(Table)
    for tid in range(n):
        await spawn(inserts, table, tid, name=f"thread{tid}")
