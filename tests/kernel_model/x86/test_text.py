"""Text: how instructions read, where sites lie, and what each CPU sees of them."""

from __future__ import annotations

import pytest

from kernel_model.boot import boot
from kernel_model.kernel import Kernel
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.task import syscall
from kernel_model.x86.alternative import text_poke_sync, write_text
from kernel_model.x86.text import NOP5, Image, Text, image_at
from sim.macros import outcome
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.maps import explore, run, together

HERE, THERE = Text("jmp", 0x1000), Text("jmp", 0x2000)
SITES = {0: ("entry", NOP5), 20: ("tail", HERE), 30: ("tail", THERE)}


def kernel_of(cpus: int = 2) -> Kernel:
    return boot(Memory(), cpus=cpus)


def image_of(kernel: Kernel) -> Image:
    return kernel.memory.static(Image, kernel, "text", 50, SITES)


# -- instructions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ip", "code"),
    [
        (NOP5, 0x1000, "0f 1f 44 00 00"),
        (Text("jmp", 0x1005), 0x1000, "e9 00 00 00 00"),
        (Text("jmp", 0x1000), 0x1000, "e9 fb ff ff ff"),
        (Text("call", 0x2005), 0x1000, "e8 00 10 00 00"),
        (Text("call", 0x0FFF), 0x1000, "e8 fa ff ff ff"),
        (Text("int3", 0x2000, "jmp"), 0x1000, "cc 00 00 00 00"),
    ],
)
def test_encoding(text: Text, ip: int, code: str) -> None:
    assert text.encode(ip) == bytes.fromhex(code)


@pytest.mark.parametrize(
    ("text", "told", "disassembled"),
    [
        (NOP5, "nop", "nopl   0x0(%rax,%rax,1)"),
        (Text("jmp", 0x1005), "jmp 0x1005", "jmp    0x1005"),
        (Text("call", 0x1005), "call 0x1005", "call   0x1005"),
        (Text("int3", 0, "nop"), "int3", "int3"),
    ],
)
def test_how_instructions_read(text: Text, told: str, disassembled: str) -> None:
    assert str(text) == told
    assert text.disassembled() == disassembled


# -- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_an_image_is_as_long_as_its_text_and_what_cpus_see_lies_behind(cpus: int) -> None:
    image = image_of(kernel_of(cpus))
    views = [view for site in image.sites.values() for view in site.views]

    assert image.length == 50
    assert [len(site.views) for site in image.sites.values()] == [cpus] * 3
    assert all(view.addr >= image.addr + image.length for view in views)
    assert all(view.addr + 8 <= image.addr + image.size for view in views)
    assert len({view.addr for view in views}) == len(views)


def test_every_site_has_its_five_bytes_and_its_contents() -> None:
    image = image_of(kernel_of())

    assert {at: site.ip - image.addr for at, site in image.sites.items()} == {0: 0, 20: 20, 30: 30}
    for at, site in image.sites.items():
        assert (site.name, site.mem.value) == SITES[at]
        assert site.mem.size == 5
        assert {view.value for view in site.views} == {site.mem.value}


def test_names_of_places() -> None:
    image = image_of(kernel_of())
    first, second = image.sites[20], image.sites[30]

    assert image.field_name(first.mem) == ".tail"
    assert image.field_name(second.mem).startswith(".tail[")  # not the first of that name
    assert image.field_name(first.views[1]) == ".tail seen by CPU 1"
    assert image.field_name(image.code) == "+0x0"
    assert image.symbol(image.addr + 0x1F) == "text+0x1f"
    assert image.pairs() == {}


def test_addresses_belong_to_the_image_whose_text_they_are_in() -> None:
    kernel = kernel_of()
    first, second = image_of(kernel), image_of(kernel)

    for image in (first, second):
        assert image_at(kernel, image.addr) is image
        assert image_at(kernel, image.addr + 49) is image
        assert image_at(kernel, image.addr + 50) is None  # not what CPUs see, either
        assert image_at(kernel, image.sites[0].views[0].addr) is None
    assert image_at(kernel, 0x1000) is None


# -- what CPUs see -------------------------------------------------------------------------------


def test_a_cpu_sees_what_it_saw_until_it_is_synchronised() -> None:
    async def main(kernel: Kernel) -> None:
        site = image_of(kernel).sites[20]

        async def execute() -> None:
            async with syscall(kernel):
                seen = [await site.fetch()]
                await write_text(site.mem, THERE, "text_poke")
                seen.append(await site.fetch())
                await text_poke_sync(site, THERE)
                seen.append(await site.fetch())
            assert seen == [HERE, HERE, THERE]

        await together(kernel, execute)

    run(main)


def test_a_thread_on_no_cpu_in_particular_sees_memory() -> None:
    async def main(kernel: Kernel) -> None:
        site = image_of(kernel).sites[20]
        async with syscall(kernel):
            await write_text(site.mem, THERE, "text_poke")
            assert await site.fetch() == THERE

    run(main)


def test_cpus_are_synchronised_one_after_the_other() -> None:
    async def main(kernel: Kernel) -> None:
        site = image_of(kernel).sites[20]
        seen: list[str] = []

        async def write() -> None:
            await text_poke_sync(site, THERE)

        async def execute() -> None:
            async with syscall(kernel):
                now = await site.fetch()
            seen.append("new" if now == THERE else "old")

        await together(kernel, write, execute, execute)
        await outcome(tuple(sorted(seen)))

    found = explore(main, strategy=Dfs(distinct=True), cpus=3)

    assert not found.wrong
    assert found.outcomes - {None} == {("old", "old"), ("new", "old"), ("new", "new")}


def test_a_fetch_of_freed_text_is_found() -> None:
    async def main(kernel: Kernel) -> None:
        async with syscall(kernel):
            image = await kzalloc(kernel, Image, kernel, "text", 50, SITES)
            assert image is not None
            await image.fetch(image.addr + 40)
            await kfree(kernel, image)
            await image.fetch(image.addr + 40)

    found = explore(main, runs=1)

    assert "use-after-free-execute" in found.kinds
