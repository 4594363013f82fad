"""Patching tail calls: what bpf_arch_text_poke() says, and how a program's sites become live."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from kernel_model.boot import boot
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.jit import BpfImage
from kernel_model.bpf.ksym import BpfKsyms, bpf_ksym_add, bpf_ksym_del, is_bpf_text_address
from kernel_model.bpf.poke import (
    BpfJitPokeTab,
    __bpf_arch_text_poke,
    bpf_arch_text_poke,
    jump_to,
)
from kernel_model.bpf.prog import BpfProg
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EBUSY, EINVAL, ERANGE
from kernel_model.linux.task import syscall
from kernel_model.uapi import (
    bpf_create_map,
    bpf_map_delete_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from kernel_model.x86.text import NOP5, POKE_SIZE, REL32, Site, Text
from sim.events import Event
from sim.execution import Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.maps import explore, file_of, map_of, run
from tests.kernel_model.bpf.running import load

PLAIN = "r0 = 0\nexit"
TAIL = "r2 = map[progs]\nr3 = 0\ncall bpf_tail_call\nr0 = 0\nexit"
TWO = f"r6 = r1\nr2 = map[progs]\nr3 = 1\ncall bpf_tail_call\nr1 = r6\n{TAIL}"
SUBPROG = f"call next\nexit\nnext: {TAIL}"


async def prog_array(kernel: Kernel) -> int:
    return await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2)


def prog_of(kernel: Kernel, fd: int) -> BpfProg:
    """The program of a descriptor, without a step."""
    prog = file_of(kernel, fd).private_data
    assert isinstance(prog, BpfProg)
    return prog


def image_of(prog: BpfProg) -> BpfImage:
    image = prog.bpf_func.value
    assert image is not None
    return image


def tab_of(prog: BpfProg) -> BpfJitPokeTab:
    tab = prog.aux.poke_tab.value
    assert tab is not None
    return tab


def sites_of(prog: BpfProg, index: int = 0) -> tuple[Site, Site]:
    """The bypass and the target of a descriptor."""
    tab = tab_of(prog)
    sites = tab.sites(index, tab.tail_call[index].value.poke)
    assert sites is not None
    bypass, target = sites
    assert bypass is not None
    return bypass, target


def out_of(target: Site) -> Text:
    """What the bypass has when there is nothing in the slot."""
    return Text("jmp", target.ip + POKE_SIZE)


def contents(prog: BpfProg, index: int = 0) -> tuple[Text, Text]:
    bypass, target = sites_of(prog, index)
    for site in (bypass, target):
        assert {view.value for view in site.views} == {site.mem.value}
    return bypass.mem.value, target.mem.value


def closed(prog: BpfProg, index: int = 0) -> tuple[Text, Text]:
    """State C: the tail call is not taken."""
    return out_of(sites_of(prog, index)[1]), NOP5


def opened(target: BpfProg) -> tuple[Text, Text]:
    """State B: the tail call goes to a program."""
    return NOP5, jump_to(target.bpf_func.value)


# -- the table of results ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "result"),
    [
        (NOP5, "near", 0),
        (NOP5, NOP5, 1),
        ("near", NOP5, -EBUSY),
        ("near", "near", -EBUSY),  # whether the old bytes are there is asked first
        ("near", "other", -EBUSY),
        (NOP5, "far", -ERANGE),
        ("far", NOP5, -ERANGE),
        (NOP5, "farthest", 0),
        (NOP5, "too far", -ERANGE),
        (NOP5, "farthest back", 0),
        (NOP5, "too far back", -ERANGE),
    ],
)
@pytest.mark.parametrize("symbol", [True, False])
def test_results(old: Text | str, new: Text | str, result: int, *, symbol: bool) -> None:
    async def main(kernel: Kernel) -> None:
        prog = prog_of(kernel, await load(kernel, TAIL, maps={"progs": await prog_array(kernel)}))
        image = image_of(prog)
        site = sites_of(prog)[1]
        after = site.ip + POKE_SIZE
        texts = {
            "near": Text("jmp", image.addr + 0x100),
            "other": Text("jmp", image.addr + 0x200),
            "far": Text("jmp", image.addr ^ 1 << 40),
            "farthest": Text("jmp", after + REL32 - 1),
            "too far": Text("jmp", after + REL32),
            "farthest back": Text("jmp", after - REL32),
            "too far back": Text("jmp", after - REL32 - 1),
        }
        was = texts[old] if isinstance(old, str) else old
        to = texts[new] if isinstance(new, str) else new
        async with syscall(kernel):
            if not symbol:
                await bpf_ksym_del(kernel, image)
            got = await bpf_arch_text_poke(kernel, site, was, to)
            assert got == (result if symbol else -EINVAL)
            now = to if got == 0 else NOP5
            assert site.mem.value == now
            assert {view.value for view in site.views} == {now}
            if got == 0:
                assert await bpf_arch_text_poke(kernel, site, NOP5, to) == -EBUSY
                assert await bpf_arch_text_poke(kernel, site, to, to) == 1
                assert await bpf_arch_text_poke(kernel, site, to, NOP5) == 0
            if not symbol:
                assert await __bpf_arch_text_poke(kernel, site, was, to) == result
                if result == 0:  # back to what the slot says
                    assert await __bpf_arch_text_poke(kernel, site, to, was) == 0
                await bpf_ksym_add(kernel, image)

    run(main)


def test_a_symbol_covers_the_text_of_its_image_and_no_more() -> None:
    async def main(kernel: Kernel) -> None:
        fds = [await load(kernel, PLAIN) for _ in range(3)]
        images = sorted((image_of(prog_of(kernel, fd)) for fd in fds), key=lambda i: i.addr)
        async with syscall(kernel):
            await bpf_ksym_del(kernel, images[1])
            for image, known in zip(images, (True, False, True), strict=True):
                end = image.addr + image.length
                assert await is_bpf_text_address(kernel, image.addr) == known
                assert await is_bpf_text_address(kernel, end - 1) == known
                assert not await is_bpf_text_address(kernel, end)
                assert not await is_bpf_text_address(kernel, image.addr - 1)
            await bpf_ksym_add(kernel, images[1])
            assert await is_bpf_text_address(kernel, images[1].addr)

    run(main)


def test_the_last_reference_takes_the_symbols_away_at_once() -> None:
    async def main(kernel: Kernel) -> None:
        tree = kernel.subsystem(BpfKsyms).bpf_tree
        fd = await prog_array(kernel)
        progs = [await load(kernel, code, maps={"progs": fd}) for code in (TAIL, SUBPROG)]
        assert len(tree.value) == 3  # one for each function
        await close(kernel, progs[1])
        assert len(tree.value) == 1
        await close(kernel, progs[0])
        assert tree.value == ()

    run(main)


# -- a program that is loaded --------------------------------------------------------------------


def test_the_sites_of_an_empty_slot_skip_the_tail_call() -> None:
    async def main(kernel: Kernel) -> None:
        prog = prog_of(kernel, await load(kernel, TAIL, maps={"progs": await prog_array(kernel)}))
        assert tab_of(prog).tailcall_target_stable[0].value
        assert contents(prog) == closed(prog)
        bypass, target = sites_of(prog)
        assert (bypass.name, target.name) == ("tailcall_bypass", "tailcall_target")
        assert bypass.ip < target.ip

    run(main)


def test_the_sites_of_an_occupied_slot_go_to_its_program() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        there = await load(kernel, PLAIN)
        assert await bpf_map_update_elem(kernel, fd, u32(1), u32(there)) == 0
        prog = prog_of(kernel, await load(kernel, TWO, maps={"progs": fd}))
        assert [stable.value for stable in tab_of(prog).tailcall_target_stable] == [True, True]
        assert contents(prog, 0) == opened(prog_of(kernel, there))
        assert contents(prog, 1) == closed(prog, 1)

    run(main)


def test_tail_calls_land_behind_the_prologue() -> None:
    async def main(kernel: Kernel) -> None:
        image = image_of(prog_of(kernel, await load(kernel, PLAIN)))
        assert jump_to(image) == Text("jmp", image.addr + 11)
        assert jump_to(None) == NOP5

    run(main)


@pytest.mark.parametrize("code", [TAIL, SUBPROG])
def test_the_sites_follow_the_slot(code: str) -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        first, second = await load(kernel, PLAIN), await load(kernel, PLAIN)
        prog = prog_of(kernel, await load(kernel, code, maps={"progs": fd}))
        functions = prog.aux.func.value
        where = functions[1] if functions else prog
        assert contents(where) == closed(where)
        for there in (first, second, second):
            assert await bpf_map_update_elem(kernel, fd, u32(0), u32(there)) == 0
            assert contents(where) == opened(prog_of(kernel, there))
        assert await bpf_map_update_elem(kernel, fd, u32(1), u32(first)) == 0  # of no tail call
        assert contents(where) == opened(prog_of(kernel, second))
        for _ in range(2):
            await bpf_map_delete_elem(kernel, fd, u32(0))
            assert contents(where) == closed(where)

    run(main)


def tracked(kernel: Kernel, fd: int) -> list[Any]:
    return [elem.aux.value for elem in map_of(kernel, fd).aux.poke_progs.value]


def test_a_program_is_tracked_once_and_one_with_functions_by_those_that_tail_call() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        two = prog_of(kernel, await load(kernel, TWO, maps={"progs": fd}))
        assert tracked(kernel, fd) == [two.aux]
        several = prog_of(kernel, await load(kernel, SUBPROG, maps={"progs": fd}))
        assert tracked(kernel, fd) == [two.aux, several.aux.func.value[1].aux]
        await load(kernel, "r2 = map[progs]\nr0 = 0\nexit", maps={"progs": fd})
        assert len(tracked(kernel, fd)) == 2

    run(main)


@pytest.mark.parametrize(
    ("version", "code", "left"),
    [("5.10", TAIL, 0), ("5.10", SUBPROG, 1), ("5.14", TAIL, 0), ("5.14", SUBPROG, 0)],
)
def test_who_is_forgotten_when_a_program_is_freed(version: str, code: str, left: int) -> None:
    kept = []

    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        await close(kernel, await load(kernel, code, maps={"progs": fd}))
        kept.append(map_of(kernel, fd))

    explore(main, version, runs=1)
    assert len(kept[0].aux.poke_progs.value) == left


# -- the order of a load -------------------------------------------------------------------------


class Step(NamedTuple):
    """An operation, and the end of the name of the place."""

    op: str
    place: str


def steps(code: str, version: str = "5.10", *add: str) -> list[Step]:
    """What the load of a program writes, in order; slot 0 of its prog array is occupied."""
    memory = Memory()
    kernel = boot(memory, version, fixes_of(version, add))
    events: list[Event] = []

    async def main() -> None:
        fd = await prog_array(kernel)
        await bpf_map_update_elem(kernel, fd, u32(0), u32(await load(kernel, PLAIN)))
        events.clear()
        await load(kernel, code, maps={"progs": fd})

    strategy = Dfs()
    strategy.begin()
    direct.run(Execution(main, memory, strategy, observer=events.append))
    return [
        Step(event.op.name, getattr(event.op.target, "label", "").rpartition(".")[2])
        for event in events
    ]


def places(found: list[Step], *wanted: Step) -> list[int]:
    """Where the steps come first."""
    return [found.index(step) for step in wanted]


TRACKED = Step("store", "poke_progs")
STABLE = Step("WRITE_ONCE", "tailcall_target_stable[0]")
TARGET, BYPASS = Step("memcpy", "tailcall_target"), Step("memcpy", "tailcall_bypass")
KSYM = Step("rcu_assign_pointer", "bpf_tree")
ID = Step("store", "prog_idr")


@pytest.mark.parametrize("code", [TAIL, SUBPROG])
def test_tracked_then_fixed_up_then_stable_then_a_symbol(code: str) -> None:
    found = steps(code)
    order = places(found, TRACKED, TARGET, BYPASS, STABLE, KSYM)

    assert order == sorted(order)


def test_a_program_has_an_id_before_its_symbol_but_its_functions_have_theirs_before() -> None:
    assert places(steps(TAIL), ID, KSYM) == sorted(places(steps(TAIL), ID, KSYM))
    assert places(steps(SUBPROG), KSYM, ID) == sorted(places(steps(SUBPROG), KSYM, ID))


def test_a_fixup_holds_the_mutex_from_the_slot_to_the_stable_flag() -> None:
    found = steps(TAIL)
    at = found.index(STABLE)
    locks = [step.op for step in found[:at] if step.place == "poke_mutex"]
    inside = [step.op for step in found[at:] if step.place == "poke_mutex"]

    assert "lock" in locks[-1]
    assert "unlock" in inside[0]


def test_a_mutant_is_stable_before_it_is_fixed_up() -> None:
    order = places(steps(TAIL, "5.10", "mutant:stable-first"), STABLE, TARGET)

    assert order == sorted(order)


# -- the order of an update ----------------------------------------------------------------------

SAME = "r6 = r1\n" + 2 * "r2 = map[progs]\nr3 = 0\ncall bpf_tail_call\nr1 = r6\n" + "r0 = 0\nexit"


def pokes(version: str = "5.10", *add: str) -> list[list[str]]:
    """Which sites an install, an update and a removal patch, and when they wait for readers.

    The slot has two tail calls in one program.
    """
    memory = Memory()
    kernel = boot(memory, version, fixes_of(version, add))
    events: list[Event] = []
    told: list[list[str]] = []

    def tell() -> None:
        told.append([])
        for event in events:
            label = getattr(event.op.target, "label", "").rpartition(".")[2].partition("[")[0]
            if event.op.name == "text_poke int3":
                told[-1].append(label.removeprefix("tailcall_"))
            elif event.op.name.startswith("synchronize_rcu") and "wait" not in told[-1][-1:]:
                told[-1].append("wait")
        events.clear()

    async def main() -> None:
        fd = await prog_array(kernel)
        first, second = await load(kernel, PLAIN), await load(kernel, PLAIN)
        await load(kernel, SAME, maps={"progs": fd})
        events.clear()
        for target in (first, second, second):
            await bpf_map_update_elem(kernel, fd, u32(0), u32(target))
            tell()
        for _ in range(2):
            await bpf_map_delete_elem(kernel, fd, u32(0))
            tell()

    strategy = Dfs()
    strategy.begin()
    direct.run(Execution(main, memory, strategy, observer=events.append))
    return told


@pytest.mark.parametrize("version", ["5.10", "6.7"])
def test_the_sites_are_patched_in_an_order_that_is_safe(version: str) -> None:
    assert pokes(version) == [
        ["target", "bypass"] * 2,
        ["target"] * 2,
        [],  # nothing to change
        ["bypass", "wait", "target"] * 2,  # one descriptor after the other, each with its wait
        [],
    ]


@pytest.mark.parametrize("version", ["5.5", "5.9"])
def test_one_site_needs_no_order_and_no_wait(version: str) -> None:
    assert [[site == "ip" for site in sites] for sites in pokes(version)] == [
        [True] * 2,
        [True] * 2,
        [],
        [True] * 2,
        [],
    ]


def test_mutants_of_the_order() -> None:
    assert pokes("5.10", "mutant:install-swapped")[0] == ["bypass", "target"] * 2
    assert pokes("5.10", "mutant:remove-no-gp")[3] == ["bypass", "target"] * 2
