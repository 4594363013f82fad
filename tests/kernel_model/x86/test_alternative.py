"""Patching text under CPUs that execute it: every interleaving of one poke, or two, and a fetch."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.mutex import mutex
from kernel_model.linux.preempt import preempt_disable
from kernel_model.linux.task import syscall
from kernel_model.x86.alternative import TextPatching, _fetch_site, text_poke_bp
from kernel_model.x86.text import NOP5, Image, Text
from sim.cells import Cell, Struct, cell
from sim.macros import outcome, smp_load_acquire, smp_store_release
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.maps import Explored, explore, together

HERE, THERE = Text("jmp", 0x1000), Text("jmp", 0x2000)
SITE, BEHIND = 5, 16
NO_INT3 = "mutant:poke-no-int3"


class Done(Struct):
    KIND = "done"
    done: Cell[int] = cell(0)


def image_of(kernel: Kernel, *texts: Text) -> Image:
    """An image with a site at 5, one at 16 and so on."""
    places = {(SITE, BEHIND)[i]: (f"site{i}", text) for i, text in enumerate(texts)}
    return kernel.memory.static(Image, kernel, "text", 40, places)


async def poke(kernel: Kernel, image: Image, *news: Text) -> None:
    """Patch the sites, one after the other."""
    for site, new in zip(image.sites.values(), news, strict=True):
        async with mutex(kernel.subsystem(TextPatching).text_mutex):
            await text_poke_bp(kernel, site, new)


def poked(
    old: Text, new: Text, fetches: int = 1, add: tuple[str, ...] = (), **options: Any
) -> Explored:
    """One CPU patches; the others fetch. An outcome: whether the poke was over, what was seen."""

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, old)
        shared = kernel.memory.static(Done)

        async def patch() -> None:
            async with syscall(kernel):
                await poke(kernel, image, new)
                await smp_store_release(shared.done, 1)

        async def execute() -> None:
            async with syscall(kernel), preempt_disable():
                for_sure = await smp_load_acquire(shared.done)
                seen = [await _fetch_site(kernel, image.sites[SITE]) for _ in range(fetches)]
            await outcome((bool(for_sure), *seen))

        await together(kernel, patch, execute)

    return explore(main, strategy=Dfs(distinct=True), add=add, **options)


def seen_in(found: Explored) -> set[tuple[Any, ...]]:
    return {value for value in found.outcomes if value is not None}


CHANGES = [(NOP5, HERE), (HERE, NOP5), (HERE, THERE), (NOP5, Text("call", 0x1000))]


@pytest.mark.parametrize(("old", "new"), CHANGES, ids=str)
def test_a_fetch_sees_the_old_or_the_new_instruction_and_only_the_new_one_when_it_is_over(
    old: Text, new: Text
) -> None:
    found = poked(old, new)

    assert not found.wrong
    assert seen_in(found) == {(False, old), (False, new), (True, new)}
    assert found.executions > 10


def test_a_cpu_that_has_seen_the_new_instruction_never_sees_the_old_one_again() -> None:
    found = poked(HERE, THERE, fetches=2)

    assert not found.wrong
    assert seen_in(found) == {
        (False, HERE, HERE),
        (False, HERE, THERE),
        (False, THERE, THERE),
        (True, THERE, THERE),
    }


def test_cpus_change_over_at_times_of_their_own() -> None:
    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, HERE)

        async def patch() -> None:
            async with syscall(kernel):
                await poke(kernel, image, THERE)

        async def execute() -> None:
            async with syscall(kernel), preempt_disable():
                seen = await _fetch_site(kernel, image.sites[SITE])
            both.append(seen)

        both: list[Text] = []
        await together(kernel, patch, execute, execute)
        await outcome(tuple(both))

    found = explore(main, strategy=Dfs(2, distinct=True), cpus=3)

    assert not found.wrong
    assert seen_in(found) == {(a, b) for a in (HERE, THERE) for b in (HERE, THERE)}


def test_two_pokes_come_in_their_order_for_every_cpu() -> None:
    """Who sees what the second one wrote, sees what the first one wrote."""

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, NOP5, HERE)

        async def patch() -> None:
            async with syscall(kernel):
                await poke(kernel, image, THERE, NOP5)

        async def execute() -> None:
            async with syscall(kernel), preempt_disable():
                second = await _fetch_site(kernel, image.sites[BEHIND])
                first = await _fetch_site(kernel, image.sites[SITE])
            await outcome((first, second))

        await together(kernel, patch, execute)

    found = explore(main, strategy=Dfs(distinct=True))

    assert not found.wrong
    assert seen_in(found) == {(NOP5, HERE), (THERE, HERE), (THERE, NOP5)}


def test_a_breakpoint_stands_for_its_own_site_whatever_is_patched_next() -> None:
    """A CPU met the first breakpoint, and goes on while the second site is being patched."""

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, NOP5, NOP5)

        async def patch() -> None:
            async with syscall(kernel):
                await poke(kernel, image, HERE, THERE)

        async def execute() -> None:
            async with syscall(kernel), preempt_disable():
                await outcome((await _fetch_site(kernel, image.sites[SITE]),))

        await together(kernel, patch, execute)

    found = explore(main, strategy=Dfs(distinct=True))

    assert not found.wrong
    assert seen_in(found) == {(NOP5,), (HERE,)}


def test_a_cpu_that_lingers_at_a_breakpoint_is_not_surprised_by_the_next_poke() -> None:
    """In the kernel the trap has interrupts off, so the first poke cannot end without it."""

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, NOP5)

        async def patch() -> None:
            async with syscall(kernel):
                await poke(kernel, image, HERE)
                await poke(kernel, image, THERE)

        async def execute() -> None:
            async with syscall(kernel), preempt_disable():
                await outcome((await _fetch_site(kernel, image.sites[SITE]),))

        await together(kernel, patch, execute)

    found = explore(main, strategy=Dfs(distinct=True))

    assert not found.wrong
    assert seen_in(found) == {(NOP5,), (HERE,), (THERE,)}


def test_half_an_instruction_is_executed_without_a_breakpoint() -> None:
    found = poked(HERE, THERE, add=(NO_INT3,))

    assert found.wrong == {("kernel-bug", "kernel BUG in execute!")}
    assert seen_in(found) == {(False, HERE), (False, THERE), (True, THERE)}  # if it was not torn


def test_nothing_is_torn_after_a_poke_without_a_breakpoint() -> None:
    """The mutant breaks what is seen on the way, not where it leads."""

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, HERE)
        async with syscall(kernel):
            await poke(kernel, image, THERE)
            await outcome((await _fetch_site(kernel, image.sites[SITE]),))

    found = explore(main, add=(NO_INT3,))

    assert not found.wrong
    assert seen_in(found) == {(THERE,)}


def test_patching_sleeps() -> None:
    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, HERE)
        async with syscall(kernel), preempt_disable():
            await text_poke_bp(kernel, image.sites[SITE], THERE)

    found = explore(main, runs=1)

    assert found.kinds == {"sleep-in-atomic"}
