"""What threads make and keep outside of cells is, in executions that go back, what it would be.

The same programs by brute force, which runs every execution from its start.
"""

from collections.abc import Callable

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall, task
from kernel_model.workload import kernel_workload
from sim.cells import Cell, Struct, cell
from sim.errors import NondeterminismError
from sim.explore import Budget, Explorer, Result
from sim.macros import READ_ONCE, WRITE_ONCE, choose, note, outcome, wait_until
from sim.memory import Memory
from sim.run import Rewound
from sim.strategies.dfs import Dfs
from sim.strategies.dpor import Dpor
from sim.threads import Body, spawn
from sim.totals import Totals
from sim.workload import Program, workload


class Shared(Struct):
    x: Cell[int] = cell(0)
    y: Cell[int] = cell(0)


class Made(Struct):
    KIND = "made"
    x: Cell[int] = cell(7)

    def __init__(self, limit: int) -> None:
        self.limit = limit


class Mine(Struct):
    KIND = "mine"
    x: Cell[int] = cell(0)


async def writes(shared: Shared) -> None:
    await WRITE_ONCE(shared.y, 1)
    await WRITE_ONCE(shared.x, 1)


@workload()
async def static_after_a_choice(memory: Memory) -> None:
    shared = memory.static(Shared)
    n = await choose(3)
    made = memory.static(Made, n)
    await spawn(writes, shared)
    await outcome((n, made.limit, made.addr, await READ_ONCE(shared.x)))


@workload()
async def static_after_a_read(memory: Memory) -> None:
    shared = memory.static(Shared)

    async def reads() -> None:
        seen = await READ_ONCE(shared.x)
        y = await READ_ONCE(shared.y)
        made = memory.static(Made, seen)
        await outcome((seen, y, made.limit, made.addr, await READ_ONCE(made.x)))

    await spawn(reads, name="reader")
    await spawn(writes, shared, name="writer")


@kernel_workload()
async def subsystem_of_its_own(kernel: Kernel) -> None:
    mine = kernel.subsystem(Mine)

    async def store() -> None:
        async with syscall(kernel):
            await WRITE_ONCE(mine.x, 1)

    async with syscall(kernel):
        await task(kernel, store, name="writer")
        seen = await READ_ONCE(mine.x)
        made = kernel.memory.static(Made, 1)
        await outcome((seen, await READ_ONCE(made.x)))


class Worker:
    """Keeps what it has read in itself."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.seen = 0

    async def run(self) -> None:
        self.seen += await READ_ONCE(self.shared.x)
        self.seen += await READ_ONCE(self.shared.y)
        await outcome(self.seen)
        if self.seen == 1:
            await note("BUG")


@workload()
async def state_in_an_object(memory: Memory) -> None:
    shared = memory.static(Shared)
    await spawn(Worker(shared).run, name="reader")
    await spawn(writes, shared, name="writer")


@workload()
async def state_in_a_list(memory: Memory) -> None:
    shared = memory.static(Shared)

    async def reads(seen: list[int]) -> None:
        seen.append(await READ_ONCE(shared.x))
        seen.append(await READ_ONCE(shared.y))
        await outcome(tuple(seen))

    await spawn(reads, [], name="reader")
    await spawn(writes, shared, name="writer")


@workload()
async def state_in_a_closure(memory: Memory) -> None:
    shared = memory.static(Shared)

    def reader() -> Callable[[], Body]:
        seen = [0]

        async def reads() -> None:
            seen.append(await READ_ONCE(shared.x))
            seen.append(await READ_ONCE(shared.y))
            await outcome(tuple(seen))

        return reads

    await spawn(reader(), name="reader")
    await spawn(writes, shared, name="writer")


@workload()
async def state_in_a_variable(memory: Memory) -> None:
    shared = memory.static(Shared)

    def reader() -> Callable[[], Body]:
        seen = 0

        async def reads() -> None:
            nonlocal seen
            seen += await READ_ONCE(shared.x)
            seen += await READ_ONCE(shared.y)
            await outcome(seen)

        return reads

    await spawn(reader(), name="reader")
    await spawn(writes, shared, name="writer")


@workload()
async def predicate_of_a_variable(memory: Memory) -> None:
    shared = memory.static(Shared)

    async def waits() -> None:
        seen = 0
        for _ in range(2):
            (seen,) = await wait_until(lambda v: v != seen, shared.x)  # noqa: B023  # that is what is tried
            await outcome(seen)

    async def stores() -> None:
        for value in (1, 2, 0):
            await WRITE_ONCE(shared.x, value)

    await spawn(waits, name="waiter")
    await spawn(stores, name="writer")


PROGRAMS: dict[str, Program] = {
    made.name: made.prepare({})
    for made in (
        static_after_a_choice,
        static_after_a_read,
        subsystem_of_its_own,
        state_in_an_object,
        state_in_a_list,
        state_in_a_closure,
        state_in_a_variable,
        predicate_of_a_variable,
    )
}


def searched(program: Program, strategy: Dpor | Dfs) -> Result:
    totals = Totals(Budget(), optimal=isinstance(strategy, Dpor), keep_going=True)
    return Explorer(program, strategy, Budget(), totals=totals).explore()


@pytest.mark.parametrize("name", PROGRAMS)
def test_executions_that_go_back_are_those_of_brute_force(name: str) -> None:
    wanted, found = searched(PROGRAMS[name], Dfs()), searched(PROGRAMS[name], Dpor())

    assert found.complete
    assert found.verdict == wanted.verdict
    assert found.outcomes.keys() == wanted.outcomes.keys()
    assert {it.finding.key for it in found.findings} == {it.finding.key for it in wanted.findings}


@pytest.mark.parametrize("name", PROGRAMS)
def test_only_what_is_kept_outside_of_cells_costs_going_back(name: str) -> None:
    strategy = Dpor()
    searched(PROGRAMS[name], strategy)

    assert strategy.rewinds == (not name.startswith("state_in"))


def test_what_has_changed_is_named() -> None:
    strategy = Dpor()
    rewound = Rewound(PROGRAMS["state_in_an_object"], strategy, 1000)

    def search() -> None:
        while strategy.begin():
            rewound._gone_on()

    with pytest.raises(NondeterminismError, match="reader was started with a Worker that has chan"):
        search()
    rewound.close()
