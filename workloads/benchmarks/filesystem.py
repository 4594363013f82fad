"""In how many ways can n threads allocate a block to an inode each?

Covers: locks that few threads have in common.
Scenario: thread i locks inode i and, as it has no block yet, looks for one that is free from block
2*i (modulo 26) on, locking each that it looks at.  After Flanagan and Godefroid, "Dynamic
Partial-Order Reduction for Model Checking Software", POPL 2005.
Expect: no finding.  Up to 13 threads meet nowhere, so there is 1 execution up to the order of
independent steps; each thread beyond them meets an earlier one at one block: 2 for n=14, 8 for 16,
32 for 18, 64 for 19.
"""

from __future__ import annotations

from sim.cells import Cells, Struct
from sim.macros import READ_ONCE, WRITE_ONCE, lock, unlock
from sim.memory import Memory
from sim.threads import Thread, spawn
from sim.workload import workload
from workloads.benchmarks.limits import within

INODES = 32
BLOCKS = 26


class Disk(Struct):
    """Inodes (0: without a block, else the block's number plus 1) and blocks, with their locks."""

    KIND = "disk"

    inode: Cells[int]
    inode_lock: Cells[Thread | None]
    busy: Cells[int]
    block_lock: Cells[Thread | None]

    def __init__(self) -> None:
        self.add_cells("inode", INODES, 0)
        self.add_cells("inode_lock", INODES, None)
        self.add_cells("busy", BLOCKS, 0)
        self.add_cells("block_lock", BLOCKS, None)


async def creates(disk: Disk, tid: int) -> None:
    i = tid % INODES
    await lock(disk.inode_lock[i])
    if await READ_ONCE(disk.inode[i]) == 0:
        b = (i * 2) % BLOCKS
        while True:
            await lock(disk.block_lock[b])
            if not await READ_ONCE(disk.busy[b]):
                await WRITE_ONCE(disk.busy[b], 1)
                await WRITE_ONCE(disk.inode[i], b + 1)
                await unlock(disk.block_lock[b])
                break
            await unlock(disk.block_lock[b])
            b = (b + 1) % BLOCKS
    await unlock(disk.inode_lock[i])


@workload()
async def filesystem(memory: Memory, n: int = 14) -> None:
    within("n", n, 1, BLOCKS, f"there are {BLOCKS} blocks, and each thread takes one")
    disk = memory.static(Disk)
    for tid in range(n):
        await spawn(creates, disk, tid, name=f"thread{tid}")
