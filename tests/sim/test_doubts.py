"""Where what is counted depends on the order of independent steps, no search is a proof."""

import pytest

from kernel_model import checks
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.rcu.tree import rcu_read_lock, synchronize_rcu
from kernel_model.workload import kernel_workload
from sim.cells import Cell, Struct, cell
from sim.clock import sleep
from sim.detectors import loop
from sim.explore import Budget, Explorer, Result
from sim.macros import READ_ONCE, WRITE_ONCE, load, rmw
from sim.memory import Memory
from sim.run import HOSTS, Host
from sim.strategies.dfs import Dfs
from sim.strategies.dpor import Dpor
from sim.strategies.random_walk import RandomWalk
from sim.threads import spawn
from sim.workload import Program, Workload, workload

FEW, MANY = loop.LIMIT - 10, loop.LIMIT + 10


class Shared(Struct):
    x: Cell[int] = cell(0)
    y: Cell[int] = cell(0)
    z: Cell[int] = cell(0)


@workload()
async def reads(memory: Memory, *, times: int = FEW, often: bool = False) -> None:
    shared = memory.static(Shared)

    async def reader() -> None:
        for _ in range(times):
            await READ_ONCE(shared.x)
            if often:
                await rmw(shared.y, "add", 1, "atomic_inc")

    async def writer() -> None:
        await WRITE_ONCE(shared.z, 1)

    await spawn(reader, name="reader")
    await spawn(writer, name="writer")


@kernel_workload()
async def stall(kernel: Kernel, *, times: int = 10, seconds: int = 0) -> None:
    shared = kernel.memory.static(Shared)

    async def reader() -> None:
        async with syscall(kernel), rcu_read_lock():
            for nth in range(times):
                await (load(shared.y) if nth % 2 else WRITE_ONCE(shared.x, nth))

    async def waiter() -> None:
        async with syscall(kernel):
            await synchronize_rcu(kernel)

    async def sleeper() -> None:
        await sleep(seconds * checks.NS_PER_S)

    await task(kernel, reader, name="reader")
    await task(kernel, waiter, name="waiter")
    if seconds:
        await spawn(sleeper, name="sleeper")  # no task, and time passes all the same


def searched(program: Program, host: Host = HOSTS["direct"]) -> Result:
    return Explorer(program, Dpor(), Budget(seconds=600), host=host).explore()


@pytest.mark.parametrize("host", HOSTS.values())
@pytest.mark.parametrize(
    ("made", "params", "doubt"),
    [
        (reads, {"times": FEW}, ""),
        (reads, {"times": MANY}, "maybe a livelock"),
        (reads, {"times": FEW, "often": True}, ""),
        (stall, {"times": 10}, ""),
        (stall, {"times": checks.STALL_STEPS - 10}, ""),
        (stall, {"times": checks.STALL_STEPS + 10}, "a reader took more than 2,000 steps"),
        (stall, {"seconds": 20}, ""),
        (stall, {"seconds": 22}, "more than 21 s passed"),
    ],
)
def test_what_might_be_counted_in_another_order_is_noted(
    made: Workload, params: dict[str, int], doubt: str, host: Host
) -> None:
    result = searched(made.prepare(params), host)

    assert result.complete
    assert result.verdict == ("inconclusive" if doubt else "proved")
    assert [doubt in told for told in result.doubts] == [True] * bool(doubt)


@pytest.mark.parametrize(
    "program", [stall.prepare({"times": 2010}), reads.prepare({"times": 2 * MANY})]
)
def test_what_is_in_doubt_may_be_found_by_others(program: Program) -> None:
    walk = Explorer(program, RandomWalk(0), Budget(executions=20)).explore()

    assert walk.verdict == "finding"


def test_brute_force_is_no_proof_either() -> None:
    program = stall.prepare({"times": 2, "seconds": 22})
    result = Explorer(program, Dfs(), Budget(seconds=600), keep_going=True).explore()

    assert result.doubts
