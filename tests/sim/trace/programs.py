"""Small programs whose runs are recorded, and what tests do with them."""

import io
from collections.abc import Callable

from sim.cells import Cell, Struct, cell
from sim.choosing import Picks
from sim.detectors import standard_detectors
from sim.execution import DEFAULT_MAX_STEPS, Execution, Observer
from sim.hosts import direct
from sim.macros import (
    READ_ONCE,
    alloc,
    atomic_inc,
    choose,
    free,
    join,
    load,
    lock,
    outcome,
    store,
    unlock,
    xchg,
)
from sim.memory import Memory
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices
from sim.threads import Body, Thread, spawn
from sim.trace.format import Header, Trace
from sim.trace.reader import parse_trace
from sim.trace.writer import Build, recording

Host = Callable[[Execution], None]


class Item(Struct):
    KIND = "item"
    value: Cell[int] = cell(7)


class Box(Struct):
    KIND = "box"
    item: Cell[Item | None] = cell(None)
    reads: Cell[int] = cell(0)
    left: Cell[Thread | None] = cell(None)
    right: Cell[Thread | None] = cell(None)

    def __init__(self, extra: int) -> None:
        self.extra = extra  # steps that make the reader another program


async def box_get(box: Box) -> None:
    item = await READ_ONCE(box.item)
    for _ in range(box.extra):
        await load(box.reads)
    if item is not None:
        await outcome(await load(item.value))
    await atomic_inc(box.reads)


async def box_drop(box: Box) -> None:
    item = await xchg(box.item, None)
    if item is not None and not await choose(3):
        await free(item)


async def box_race(box: Box) -> None:
    """A reader may use the item after the writer freed it."""
    await store(box.item, await alloc(Item))
    reader = await spawn(box_get, box, name="reader")
    writer = await spawn(box_drop, box, name="writer")
    await join(reader)
    await join(writer)


async def take_both(first: Cell[Thread | None], second: Cell[Thread | None]) -> None:
    await lock(first, "mutex_lock")
    await lock(second, "mutex_lock")
    await unlock(second, "mutex_unlock")
    await unlock(first, "mutex_unlock")


async def box_deadlock(box: Box) -> None:
    """Two threads take two locks in opposite order."""
    await spawn(take_both, box.left, box.right, name="A")
    await spawn(take_both, box.right, box.left, name="B")


def builder(
    body: Callable[[Box], Body] = box_race,
    *,
    extra: int = 0,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> Build:
    """Executions of a program on a box."""

    def build(strategy: Picks, observer: Observer) -> Execution:
        memory = Memory(stacks=True)
        box = memory.static(Box, extra)
        return Execution(
            lambda: body(box),
            memory,
            strategy,
            standard_detectors(memory),
            observer=observer,
            max_steps=max_steps,
        )

    return build


HEADER = Header(workload="box", parameters={"extra": 0}, strategy="random", seed=0)

#: Choices of `box_race` that free the item between the reader's two accesses.
USE_AFTER_FREE = (0, 1, 0, 1, 0)
#: Choices of `box_deadlock` that let each thread take its first lock.
DEADLOCK = (0, 1)


def record(build: Build, strategy: Picks, host: Host = direct.run) -> bytes:
    file = io.BytesIO()
    strategy.begin()
    with recording(file, HEADER, build, strategy) as execution:
        host(execution)
    return file.getvalue()


def random_trace(seed: int, host: Host = direct.run, build: Build | None = None) -> bytes:
    return record(build or builder(), RandomWalk(seed), host)


def chosen_trace(build: Build, choices: tuple[int, ...]) -> Trace:
    return parse_trace(record(build, Choices(choices)), "box.jsonl")
