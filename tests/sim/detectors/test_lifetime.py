"""Uses after free are found when they happen, and predicted when they nearly do."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.detectors import Prediction, standard_detectors
from sim.macros import (
    READ_ONCE,
    WRITE_ONCE,
    alloc,
    free,
    load,
    load_at,
    lock,
    smp_store_release,
    store,
    store_at,
    unlock,
    wait_until,
    xchg,
)
from sim.strategies.replay import Hold
from tests.programs.code import Code, Follow, Program, Publish, Reader, Retire
from tests.programs.running import Run, Scripted, execute
from tests.sim.detectors.support import (
    Item,
    Reading,
    World,
    explore,
    synchronize_rcu,
    text,
    threads,
)

FAST = settings(max_examples=100, derandomize=True, deadline=None, database=None)


async def reader(world: World) -> None:
    async with Reading(world):
        item = await READ_ONCE(world.board.item)
        if item is not None:
            await load(item.value)


async def publish(world: World) -> Item:
    item = await alloc(Item)
    await smp_store_release(world.board.item, item)
    return item


async def impatient(world: World) -> None:
    item = await publish(world)
    await WRITE_ONCE(world.board.item, None)
    await free(item)


async def patient(world: World) -> None:
    item = await publish(world)
    await WRITE_ONCE(world.board.item, None)
    await synchronize_rcu(world)
    await free(item)


def test_use_after_free_is_reported_as_kasan_does() -> None:
    report = explore(threads(reader, impatient))

    assert report.titles == ["BUG: KASAN: use-after-free in reader"]
    assert 0 < report.noticed < report.executions
    assert report.only.threads == ("reader", "impatient")
    assert report.only.fatal
    addr = 0xFFFF888009000000
    assert re.sub(r"step \d+", "step n", text(report.only)).splitlines() == [
        f"Read of size 8 at addr {addr:016x} by task reader",
        "Call Trace:",
        " reader",
        "Allocated by task impatient at step n:",
        " publish",
        " impatient",
        "Freed by task impatient at step n:",
        " impatient",
        f"The buggy address belongs to the object at {addr:016x}",
        " which belongs to item and is called item#impatient.0",
        "The buggy address is located 0 bytes inside of",
        f" 16-byte region [{addr:016x}, {addr + 16:016x})",
        "The buggy address is item#impatient.0.value",
    ]


def test_waiting_for_readers_is_clean_and_predicts_nothing() -> None:
    report = explore(threads(reader, patient))

    assert report.titles == []
    assert report.predictions == []
    assert report.executions > 10


def test_a_lucky_access_is_predicted_with_its_place() -> None:
    report = explore(threads(reader, impatient))

    assert {
        (p.object_label, p.kind, p.access_thread, p.access_function, p.free_thread)
        for p in report.predictions
    } == {("item#impatient.0", "item", "reader", "reader", "impatient")}
    assert all(p.access_step < p.free_step for p in report.predictions)


def test_a_lock_orders_the_access_before_the_free() -> None:
    async def locked_reader(world: World) -> None:
        await lock(world.board.left)
        item = await READ_ONCE(world.board.item)
        if item is not None:
            await load(item.value)
        await unlock(world.board.left)

    async def locked_writer(world: World) -> None:
        item = await publish(world)
        await lock(world.board.left)
        await store(world.board.item, None)
        await unlock(world.board.left)
        await free(item)

    report = explore(threads(locked_reader, locked_writer))

    assert report.predictions == []
    assert [title for title in report.titles if "KASAN" in title] == []


def test_waiting_on_a_cell_of_a_freed_object() -> None:
    async def waiter(world: World) -> None:
        item = await READ_ONCE(world.board.item)
        if item is not None:
            await wait_until(lambda value: value == 7, item.value)

    report = explore(threads(waiter, impatient))

    assert report.titles == ["BUG: KASAN: use-after-free in waiter"]
    assert report.predictions


@pytest.mark.parametrize(
    ("offset", "where"), [(16, "0 bytes to the right of"), (30, "14 bytes to the right of")]
)
def test_out_of_bounds(offset: int, where: str) -> None:
    async def careless(world: World) -> None:
        item = await alloc(Item)
        await smp_store_release(world.board.item, item)
        await store_at(item.addr + offset, 4, 1)

    report = explore(threads(careless))

    assert report.titles == ["BUG: KASAN: slab-out-of-bounds in careless"]
    assert "Write of size 4 at addr" in text(report.only)
    assert f"The buggy address is located {where}" in text(report.only)


@pytest.mark.parametrize(
    ("addr", "kind"), [(8, "null-ptr-deref"), (0xDEAD_0000_0000_0100, "wild-memory-access")]
)
def test_wild_addresses(addr: int, kind: str) -> None:
    async def careless(world: World) -> None:
        del world
        await load_at(addr, 8)

    report = explore(threads(careless))

    assert report.titles == [f"BUG: KASAN: {kind} in careless"]
    assert text(report.only).splitlines()[0] == (
        f"Read of size 8 at addr {addr:016x} by task careless"
    )


def test_double_free() -> None:
    async def first(world: World) -> None:
        item = await READ_ONCE(world.board.item)
        if item is not None:
            await free(item)

    async def second(world: World) -> None:
        await free(await publish(world))

    report = explore(threads(first, second))

    assert report.titles == [
        "BUG: KASAN: double-free in first",
        "BUG: KASAN: double-free in second",
    ]


def test_atomic_swap_decides_who_frees() -> None:
    async def free_it(world: World) -> None:
        item = await xchg(world.board.item, None)
        if item is not None:
            await free(item)

    async def first(world: World) -> None:
        await free_it(world)

    async def second(world: World) -> None:
        await publish(world)
        await free_it(world)

    report = explore(threads(first, second))

    assert report.titles == []


def test_unlocking_what_another_holds() -> None:
    async def holder(world: World) -> None:
        await lock(world.board.left)

    async def intruder(world: World) -> None:
        await wait_until(lambda held: held is not None, world.board.left)
        await unlock(world.board.left)

    report = explore(threads(holder, intruder))

    assert report.titles == ["WARNING: bad unlock balance detected in intruder"]
    assert "intruder releases a lock that it does not hold" in text(report.only)


# -- predictions -----------------------------------------------------------------------------------


def predicted(program: Program, seed: int) -> tuple[Run, list[Prediction]]:
    predictions: list[Prediction] = []
    run = execute(
        program,
        Scripted(seed=seed),
        lambda memory: standard_detectors(memory, predictions),
        stacks=True,
    )
    return run, predictions


def witnessed(program: Program, run: Run, prediction: Prediction) -> bool:
    """Whether holding the victim back makes it access the object after the free."""
    before = sum(step < prediction.access_step for step in run.execution.choice_steps)
    hold = Hold(run.execution.choices[:before], prediction.access_thread)
    assert hold.begin()
    directed = execute(program, hold, standard_detectors)
    return any(found.kind == "use-after-free" for found in directed.execution.findings)


FOLLOW = st.builds(Follow, st.just("p"), st.booleans(), st.booleans())
READER: st.SearchStrategy[Code] = st.lists(
    st.lists(FOLLOW, min_size=1, max_size=2).map(lambda body: Reader("rcu", tuple(body))),
    min_size=1,
    max_size=2,
).map(tuple)


def users_of_a_node(domain: str) -> st.SearchStrategy[Program]:
    """One thread publishes a node, some read it under rcu, some retire it."""
    retire: st.SearchStrategy[Code] = st.just((Retire("p", domain),))
    publish: st.SearchStrategy[Code] = READER.map(lambda code: (Publish("p"), *code))
    others = st.lists(READER | retire, min_size=1, max_size=2)
    return st.tuples(publish, retire, others).map(lambda it: Program((it[0], it[1], *it[2])))


@FAST
@given(users_of_a_node("rcu"), st.integers(0, 999))
def test_nothing_is_predicted_where_readers_are_waited_for(program: Program, seed: int) -> None:
    run, predictions = predicted(program, seed)

    assert predictions == []
    assert [found for found in run.execution.findings if found.kind == "use-after-free"] == []


@pytest.mark.parametrize("domain", ["", "trace"])
@FAST
@given(data=st.data(), seed=st.integers(0, 999))
def test_what_is_predicted_can_be_witnessed(domain: str, data: st.DataObject, seed: int) -> None:
    drawn = data.draw(users_of_a_node(domain))
    run, predictions = predicted(drawn, seed)

    assert all(witnessed(drawn, run, prediction) for prediction in predictions)


def test_a_free_that_waits_for_nobody_is_predicted() -> None:
    reader_code: Code = (Reader("rcu", (Follow("p"),)),)
    program = Program(((Publish("p"), Retire("p")), reader_code))
    runs = [predicted(program, seed) for seed in range(30)]

    lucky = [run for run, predictions in runs if predictions]
    assert lucky
    assert all(not run.execution.findings for run in lucky)
