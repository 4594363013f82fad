"""Addresses and labels, poison and redzones, places by address, read-modify-writes."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cells import Bytes, Cell, Struct, cell
from sim.events import Event, Fault
from sim.execution import Execution
from sim.hosts import direct
from sim.macros import (
    READ_ONCE,
    alloc,
    atomic_add_return,
    atomic_dec_and_test,
    atomic_inc_not_zero,
    cmpxchg,
    free,
    join,
    load,
    load_at,
    lock,
    rmw,
    rmw_at,
    store,
    store_at,
    trylock,
    unlock,
    wait_until,
    xchg,
)
from sim.memory import REDZONE, STATIC_BASE, Memory
from sim.strategies.replay import Choices
from sim.threads import HEAP_BASE, Thread, spawn
from tests.programs.code import Program
from tests.programs.drawing import only, programs
from tests.programs.running import Scripted, execute

FAST = settings(max_examples=50, derandomize=True, deadline=None, database=None)


class Small(Struct):
    KIND = "small"
    x: Cell[int] = cell(5)
    p: Cell[Any] = cell(None)
    half: Cell[int] = cell(0, size=4)
    held: Cell[Thread | None] = cell(None)
    data: Bytes

    def __init__(self) -> None:
        self.add_bytes("data", 8)


Main = Callable[[Small], Coroutine[Any, Any, None]]


def run(main: Main) -> list[Event]:
    """The events of `main` on a static object."""
    memory = Memory(stacks=True)
    small = memory.static(Small)
    events: list[Event] = []
    execution = Execution(lambda: main(small), memory, Choices([]), observer=events.append)
    direct.run(execution)
    for event in events:
        if event.op.name == "crash":
            raise event.op.operand  # an assertion in `main`
    return events


def result(main: Main) -> Any:
    """The result of the last operation of the only thread."""
    *_, last, _exit, _quiescent = run(main)
    return last.result


def fault(main: Main) -> Fault:
    """The only fault."""
    (found,) = [event.fault for event in run(main) if event.fault is not None]
    return found


# -- objects -------------------------------------------------------------------------------------


def test_static_objects_are_numbered_by_kind() -> None:
    memory = Memory()
    objects = [memory.static(Small), memory.static(Small)]

    assert [made.label for made in objects] == ["small.0", "small.1"]
    assert objects[0].addr == STATIC_BASE
    assert objects[1].addr >= objects[0].addr + objects[0].size + REDZONE
    assert objects[1].addr % 64 == 0
    assert memory.roots == objects
    assert memory.live() == tuple(objects)


async def allocates_twice(small: Small) -> None:
    await alloc(Small)
    await load(small.x)
    await alloc(Small)


def allocated(seed: int) -> list[tuple[str, int]]:
    async def main(small: Small) -> None:
        for name in "ab":
            await spawn(allocates_twice, small, name=name)
        await allocates_twice(small)

    memory = Memory()
    small = memory.static(Small)
    events: list[Event] = []
    strategy = Scripted(seed=seed)
    execution = Execution(lambda: main(small), memory, strategy, observer=events.append)
    strategy.execution = execution
    direct.run(execution)
    return [(e.result.label, e.result.addr) for e in events if e.op.name == "kmalloc"]


def test_addresses_and_labels_do_not_depend_on_the_interleaving() -> None:
    orders = {tuple(allocated(seed)) for seed in range(20)}
    assert len(orders) > 1

    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert sorted(label for label, _ in allocated(0)) == [
        f"small#{thread}.{nth}" for thread in ("a", "b", "main") for nth in (0, 1)
    ]


@FAST
@given(programs(only("objects", "forks"), threads=(2, 3)), st.integers(0, 9), st.integers(0, 9))
def test_a_label_has_one_address_in_all_runs(program: Program, one: int, other: int) -> None:
    first, second = (
        {found.label: found.addr for found in run.machine.memory._objects.values()}
        for run in (execute(program, Scripted(seed=seed)) for seed in (one, other))
    )

    assert len(set(first.values())) == len(first), "no address is used twice"
    assert all(first[label] == second[label] for label in first.keys() & second.keys())


def test_siblings_far_down_have_arenas_of_their_own() -> None:
    parent = Thread("main", None, 0, None, None)
    children: list[Thread] = []
    for nth in range(40):
        children.append(Thread(f"c{nth}", parent, nth + 1, None, None))
        parent.forks += 1
    grandchild = Thread("g", children[3], 99, None, None)

    keys = [thread.key for thread in (parent, *children, grandchild)]
    assert len(set(keys)) == len(keys)
    arenas = [t.next_addr for t in (parent, *children, grandchild) if t.next_addr]
    assert len(set(arenas)) == len(arenas)
    assert all(addr >= HEAP_BASE for addr in arenas)


def test_sites_are_kept_with_stacks() -> None:
    memory = Memory(stacks=True)

    async def maker() -> None:
        await free(await alloc(Small))

    execution = Execution(maker, memory, Choices([]))
    direct.run(execution)

    (site,) = memory.allocated.values()
    assert (site.thread, site.step, [str(frame) for frame in site.stack]) == ("main", 0, ["maker"])
    (site,) = memory.freed.values()
    assert (site.thread, site.step) == ("main", 1)
    assert memory.live() == ()


# -- freed and out of bounds ---------------------------------------------------------------------


async def use_after_free(small: Small) -> None:
    made = await alloc(Small)
    await free(made)
    await load(made.x)


async def write_after_free(small: Small) -> None:
    made = await alloc(Small)
    await free(made)
    await store_at(made.addr + 8, 8, 1)


async def double_free(small: Small) -> None:
    made = await alloc(Small)
    await free(made)
    await free(made)


async def out_of_bounds(small: Small) -> None:
    await load_at(small.addr + small.size, 1)


async def inside_a_cell(small: Small) -> None:
    await load_at(small.addr + 1, 1)


async def null(small: Small) -> None:
    await load_at(0x10, 8)


async def wild(small: Small) -> None:
    await store_at(small.addr + small.size + REDZONE, 8, 1)


async def foreign_unlock(small: Small) -> None:
    await unlock(small.held)


@pytest.mark.parametrize(
    ("main", "kind", "write"),
    [
        (use_after_free, "use-after-free", False),
        (write_after_free, "use-after-free", True),
        (double_free, "double-free", True),
        (out_of_bounds, "slab-out-of-bounds", False),
        (inside_a_cell, "slab-out-of-bounds", False),
        (null, "null-ptr-deref", False),
        (wild, "wild-memory-access", True),
        (foreign_unlock, "invalid-unlock", True),
    ],
)
def test_faults(main: Main, kind: str, write: bool) -> None:
    found = fault(main)

    assert (found.kind, found.write) == (kind, write)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_freed_memory_reads_as_poison(size: int) -> None:
    async def main(small: Small) -> None:
        made = await alloc(Small)
        await free(made)
        await load_at(made.addr, size)

    assert result(main) == int.from_bytes(b"\x6b" * size, "little")


# -- by address ----------------------------------------------------------------------------------


def test_an_address_reaches_cells_and_regions() -> None:
    async def main(small: Small) -> None:
        await store_at(small.x.addr, 8, 300)
        assert await load(small.x) == 300
        assert await load_at(small.x.addr, 1) == 300 & 0xFF
        await store(small.data.word(0), 0x0102030405060708)
        assert await load_at(small.data.addr + 2, 2) == 0x0506
        assert await rmw_at(small.data.addr, 4, "add", 1, "add") == 0x05060708
        assert await load(small.data.word(0, 4)) == 0x05060709
        await store(small.p, small)
        await load_at(small.p.addr, 8)

    events = run(main)

    assert [event.fault for event in events if event.fault is not None] == []
    pointer = [event.result for event in events if event.op.name == "load"][-1]
    assert pointer == STATIC_BASE


# -- values --------------------------------------------------------------------------------------


def test_read_modify_writes() -> None:
    async def main(small: Small) -> None:
        assert await xchg(small.x, 6) == 5
        assert await cmpxchg(small.x, 1, 9) == 6
        assert await cmpxchg(small.x, 6, 7) == 6
        assert await atomic_add_return(small.x, 3) == 10
        assert await rmw(small.x, "or", 1, "or") == 10
        assert await rmw(small.x, "and", 3, "and") == 11
        assert await rmw(small.x, "xor", 2, "xor") == 3
        assert await atomic_dec_and_test(small.x) is True
        assert await atomic_inc_not_zero(small.x) is False
        assert await READ_ONCE(small.x) == 0

    assert run(main)[-1].op.name == "quiescent", "no assertion failed"


def test_locks() -> None:
    async def other(small: Small) -> None:
        assert await trylock(small.held) is False
        await store(small.x, 6)
        await lock(small.held)

    async def main(small: Small) -> None:
        assert await trylock(small.held) is True
        waiter = await spawn(other, small, name="other")
        await wait_until(lambda x: x == 6, small.x)
        await unlock(small.held)
        await join(waiter)

    events = run(main)

    names = [(event.thread.name, event.op.name) for event in events]
    assert names.index(("main", "unlock")) < names.index(("other", "lock"))
    assert names[-1][1] == "quiescent"
