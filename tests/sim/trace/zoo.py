"""A program with every kind of operation and every kind of value, for two threads."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sim import ops
from sim.cells import Cell, Struct, cell
from sim.choosing import Strategy
from sim.clock import now, sleep
from sim.cpu import Cpu
from sim.execution import Execution, Observer
from sim.macros import (
    alloc,
    atomic_add_return,
    choose,
    cmpxchg,
    cpu_hold,
    cpu_release,
    free,
    gp_end,
    gp_start,
    join,
    load_at,
    lock,
    new_section,
    note,
    outcome,
    rmw_at,
    section_begin,
    section_end,
    smp_mb,
    smp_store_release,
    store_at,
    trylock,
    unlock,
    wait_until,
)
from sim.memory import Memory
from sim.sections import Domain
from sim.threads import Thread, spawn


class Mode(Enum):
    FAST = 1


@dataclass(frozen=True)
class Site:
    """A value, shown field by field."""

    name: str
    tags: frozenset[str]


class Opaque:
    """An object without a name, shown as its class."""


class Page(Struct):
    KIND = "page"
    flags: Cell[int] = cell(0)
    owner: Cell[Thread | None] = cell(None)

    def __init__(self) -> None:
        self.add_cells("slots", 2, None)
        self.add_bytes("data", 16)


REMARKS: tuple[Any, ...] = (
    b"\x01\xff",
    {"b": 1, "a": (2.5, float("inf"))},
    {"red", "green", "blue"},
    Mode.FAST,
    Site("nop", frozenset("xyz")),
    Opaque(),
    len,
    1 << 60,
    "\ud800\x1b[31m",
    ops.Op(ops.FENCE, "smp_mb"),
)


async def reader(page: Page, rcu: Domain, cpu: Cpu) -> None:
    section = new_section()
    await section_begin(rcu, section, "rcu_read_lock")
    await cpu_hold(cpu, "preempt_disable")
    await load_at(page.data.addr, 4)  # type: ignore[attr-defined]  # made by add_bytes
    await load_at(page.addr + 4096, 8)
    await cpu_release(cpu, "preempt_enable")
    await section_end(rcu, section, "rcu_read_unlock")
    await wait_until(lambda flags, owner: flags > 0 and owner is None, page.flags, page.owner)
    raise KeyError(Opaque())


async def zoo(page: Page, rcu: Domain, cpu: Cpu) -> int:
    other = await spawn(reader, page, rcu, cpu, name="reader", cpu=cpu)
    grace_period = await gp_start(rcu, "synchronize_rcu")
    await gp_end(rcu, grace_period, "synchronize_rcu")
    await store_at(page.data.addr + 8, 8, 258)  # type: ignore[attr-defined]  # made by add_bytes
    await rmw_at(page.data.addr + 8, 8, "add", 1, "atomic_add")  # type: ignore[attr-defined]  # as above
    await cmpxchg(page.flags, 5, 6)
    await lock(page.owner)
    await trylock(page.owner)
    await unlock(page.owner)
    await smp_store_release(page.flags, 1)
    await atomic_add_return(page.flags, 2)
    await smp_mb()
    await sleep(10)
    await now()
    await choose(1)
    for remark in REMARKS:
        await note("remark", remark)
    await outcome(await choose(2))
    await free(await alloc(Page))
    await join(other)
    return 3


def build_zoo(strategy: Strategy, observer: Observer) -> Execution:
    memory = Memory(stacks=True)
    page, cpu = memory.static(Page), memory.static(Cpu, 0)
    rcu = memory.static(Domain, "rcu")
    return Execution(lambda: zoo(page, rcu, cpu), memory, strategy, observer=observer)
