"""In how many orders can n threads add 1 to one variable, atomically?

Covers: value-returning read-modify-writes.
Scenario: n threads share one variable; each adds 1 to it with atomic_fetch_add.
Expect: no finding; n! executions, for the adds are in some order.
"""

from __future__ import annotations

from sim.cells import Cell, Struct, cell
from sim.macros import atomic_fetch_add
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload
from workloads.benchmarks.limits import within


class Shared(Struct):
    """The variable."""

    KIND = "shared"

    x: Cell[int] = cell(0)


async def adds(shared: Shared) -> None:
    await atomic_fetch_add(shared.x, 1)


@workload()
async def atomic_increment(memory: Memory, n: int = 2) -> None:
    within("n", n, 1)
    shared = memory.static(Shared)
    for i in range(n):
        await spawn(adds, shared, name=f"thread{i}")
