"""Objects that nothing points to when all threads have ended."""

from sim.cells import Struct
from sim.macros import WRITE_ONCE, alloc, free
from tests.sim.detectors.support import Item, World, explore, text, threads


class Holder(Struct):
    """Points to an item by a constant, and to several by a list."""

    KIND = "holder"

    def __init__(self, item: Item) -> None:
        self.item = item
        self.add_cells("slots", 2, None)
        self.several = [item]


async def leaks(world: World) -> None:
    del world
    await alloc(Item)


async def frees(world: World) -> None:
    del world
    await free(await alloc(Item))


async def stores(world: World) -> None:
    await WRITE_ONCE(world.board.item, await alloc(Item))


async def stores_weakly(world: World) -> None:
    await WRITE_ONCE(world.board.spare, await alloc(Item))


async def chain(world: World) -> None:
    first = await alloc(Item)
    await WRITE_ONCE(first.next, await alloc(Item))
    await WRITE_ONCE(world.board.item, first)


async def lost_chain(world: World) -> None:
    await chain(world)
    await WRITE_ONCE(world.board.item, None)


async def lost_circle(world: World) -> None:
    del world
    first = await alloc(Item)
    second = await alloc(Item)
    await WRITE_ONCE(first.next, second)
    await WRITE_ONCE(second.next, first)


def test_a_leak_is_told_as_kmemleak_does() -> None:
    report = explore(threads(leaks))

    assert report.titles == ["BUG: memory leak: unreferenced object item#leaks.0"]
    assert report.only.threads == ("leaks",)
    assert text(report.only).splitlines() == [
        "unreferenced object 0xffff888008000000 (size 16):",
        ' comm "leaks", step 2',
        " backtrace:",
        " leaks",
    ]


def test_what_is_freed_or_pointed_to_is_no_leak() -> None:
    assert explore(threads(frees, stores)).titles == []
    assert explore(threads(chain)).titles == []


def test_a_weak_pointer_does_not_count() -> None:
    assert explore(threads(stores_weakly)).titles == [
        "BUG: memory leak: unreferenced object item#stores_weakly.0"
    ]


def test_what_only_a_lost_object_points_to_is_told_with_it() -> None:
    report = explore(threads(lost_chain))

    assert report.titles == ["BUG: memory leak: unreferenced object item#lost_chain.0"]
    assert text(report.only).splitlines()[-2:] == [
        "which points to, and is all that does:",
        " item#lost_chain.1",
    ]


def test_a_lost_circle_is_one_leak() -> None:
    assert explore(threads(lost_circle)).titles == [
        "BUG: memory leak: unreferenced object item#lost_circle.0"
    ]


def test_constants_are_pointers_too() -> None:
    async def holds(world: World) -> None:
        holder = await alloc(Holder, await alloc(Item))
        await WRITE_ONCE(world.board.any, holder)

    assert explore(threads(holds)).titles == []


class Pooled(Struct):
    """Its memory is kept for the next one."""

    KIND = "pooled"

    def __init__(self, item: Item | None = None) -> None:
        self.item = item

    def may_be_lost(self) -> bool:
        return True


def test_what_may_be_lost_is_no_leak_but_keeps_nothing_else() -> None:
    async def loses(world: World) -> None:
        del world
        await alloc(Pooled)

    async def loses_more(world: World) -> None:
        del world
        await alloc(Pooled, await alloc(Item))

    assert not explore(threads(loses)).findings
    assert explore(threads(loses_more)).only.title == (
        "BUG: memory leak: unreferenced object item#loses_more.0"
    )
