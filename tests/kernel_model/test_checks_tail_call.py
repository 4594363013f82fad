"""Sites that stand for a slot and say something else than it holds: found at the end, or right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.jit import BpfImage
from kernel_model.bpf.ksym import bpf_ksym_del
from kernel_model.bpf.poke import jump_to
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall
from kernel_model.uapi import bpf_create_map, bpf_map_delete_elem, bpf_map_update_elem, close, u32
from kernel_model.x86.alternative import write_text
from kernel_model.x86.text import NOP5, POKE_SIZE, Site, Text
from sim.explore import Budget, Explorer, Found
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find
from tests.kernel_model.bpf.running import explore, load
from tests.kernel_model.bpf.test_poke import SUBPROG, TAIL, image_of, prog_of

STALE = "BUG: stale tail call in bpf_prog_caller: it does not do what bpf_array#main.1.ptrs[0] says"


class Loaded:
    """A program with a tail call through slot 0, which holds `targets[0]` or nothing.

    sites  the bypass and the target of the tail call; caller: its descriptor
    """

    def __init__(self, kernel: Kernel, map_fd: int, caller: int, targets: tuple[int, ...]) -> None:
        self.kernel = kernel
        self.map_fd = map_fd
        self.caller = caller
        self.targets = [image_of(prog_of(kernel, fd)) for fd in targets]
        images = [found for found in kernel.memory.live() if isinstance(found, BpfImage)]
        ((bypass, self.target),) = [s for image in images for s in image.tail_sites.values()]
        assert bypass is not None
        self.bypass = bypass

    @property
    def out(self) -> Text:
        return Text("jmp", self.target.ip + POKE_SIZE)


Change = Callable[[Loaded], Any]


def titles(
    change: Change, code: str = TAIL, version: str = "5.10", slot: int | None = 0
) -> list[str]:
    """What is found after a change of what is there; the slot holds the target of that number."""

    async def main(kernel: Kernel) -> None:
        map_fd = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2)
        targets = [await load(kernel, "r0 = 0\nexit", name=f"t{i}") for i in range(2)]
        caller = await load(kernel, code, maps={"progs": map_fd}, name="caller")
        if slot is not None:
            await bpf_map_update_elem(kernel, map_fd, u32(0), u32(targets[slot]))
        await change(Loaded(kernel, map_fd, caller, tuple(targets)))

    return list(explore(main, version, limit=1).wrong)


async def nothing(loaded: Loaded) -> None:
    """All is well."""


async def memory(site: Site, text: Text) -> None:
    """The memory of a site, and what every CPU sees."""
    for place in (site.mem, *site.views):
        await write_text(place, text, "memcpy")


@pytest.mark.parametrize("version", ["5.5", "5.9", "5.10", "5.14", "6.12"])
@pytest.mark.parametrize("slot", [None, 0, 1])
def test_a_loaded_program_agrees_with_the_slot(version: str, slot: int | None) -> None:
    async def main(kernel: Kernel) -> None:
        map_fd = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2)
        targets = [await load(kernel, "r0 = 0\nexit", name=f"t{i}") for i in range(2)]
        for fd in targets:
            await bpf_map_update_elem(kernel, map_fd, u32(0), u32(fd))
        await load(kernel, TAIL, maps={"progs": map_fd}, name="caller")
        if slot is None:
            await bpf_map_delete_elem(kernel, map_fd, u32(0))
        else:
            await bpf_map_update_elem(kernel, map_fd, u32(0), u32(targets[slot]))

    assert not explore(main, version, limit=1).wrong


def test_functions_agree_with_the_slot_too() -> None:
    assert titles(nothing, SUBPROG) == []
    assert titles(nothing, SUBPROG, slot=None) == []


WRONG: dict[str, tuple[int | None, Change]] = {
    "skips what the slot holds": (0, lambda it: memory(it.bypass, it.out)),
    "falls through": (0, lambda it: memory(it.target, NOP5)),
    "jumps to another program": (0, lambda it: memory(it.target, jump_to(it.targets[1]))),
    "jumps to the entry": (0, lambda it: memory(it.target, Text("jmp", it.targets[0].addr))),
    "jumps out of an empty slot": (None, lambda it: memory(it.target, jump_to(it.targets[0]))),
    "unwinds for an empty slot": (None, lambda it: memory(it.bypass, NOP5)),
    "skips too much": (None, lambda it: memory(it.bypass, Text("jmp", it.target.ip))),
    "only the memory": (0, lambda it: write_text(it.target.mem, NOP5, "memcpy")),
    "only one CPU": (0, lambda it: write_text(it.target.views[1], NOP5, "do_sync_core")),
    "a breakpoint stays": (0, lambda it: memory(it.target, Text("int3", it.targets[0].addr))),
}


@pytest.mark.parametrize("code", [TAIL, SUBPROG], ids=["main", "subprog"])
@pytest.mark.parametrize("name", WRONG)
def test_a_site_that_disagrees_is_found(name: str, code: str) -> None:
    slot, change = WRONG[name]

    assert titles(change, code, slot=slot) == [STALE]


def test_a_slot_that_changes_without_a_patch_is_found() -> None:
    async def change(loaded: Loaded) -> None:
        tab = prog_of(loaded.kernel, loaded.caller).aux.poke_tab.value
        assert tab is not None
        tab.tail_call[0].value.map.ptrs[0].value = None

    assert titles(change) == [STALE]


@pytest.mark.parametrize("version", ["5.5", "5.9"])
def test_the_old_layout_has_one_site(version: str) -> None:
    async def main(kernel: Kernel) -> None:
        map_fd = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2)
        target = await load(kernel, "r0 = 0\nexit", name="t0")
        caller = await load(kernel, TAIL, maps={"progs": map_fd}, name="caller")
        await bpf_map_update_elem(kernel, map_fd, u32(0), u32(target))
        ((bypass, site),) = image_of(prog_of(kernel, caller)).tail_sites.values()
        assert bypass is None
        await memory(site, NOP5)

    assert list(explore(main, version, limit=1).wrong) == [STALE]


# -- programs that nothing has to be said about --------------------------------------------------


async def without_symbol(loaded: Loaded) -> None:
    await memory(loaded.target, NOP5)
    async with syscall(loaded.kernel):
        await bpf_ksym_del(loaded.kernel, loaded.target.image)


async def gone(loaded: Loaded) -> None:
    await memory(loaded.target, NOP5)
    await close(loaded.kernel, loaded.caller)


@pytest.mark.parametrize("change", [without_symbol, gone])
def test_a_program_that_cannot_be_found_may_disagree(change: Change) -> None:
    assert titles(change) == []


# -- what the kernel does ------------------------------------------------------------------------


def findings(params: dict[str, str], version: str, add: tuple[str, ...] = ()) -> list[Found]:
    """All that PCT finds in the load window."""
    program = find("tailcall_load_window").prepare(params, version=version, add=add)
    return Explorer(program, Pct(0), Budget(executions=600), keep_going=True).explore().findings


def test_an_update_without_the_mutex_is_lost() -> None:
    params = {"installed": "no", "again": "no"}
    kinds = {f.finding.kind for f in findings(params, "6.7", ("mutant:fixup-unlocked",))}

    assert "stale-tail-call" in kinds
    assert not findings(params, "6.7")


def test_the_report_says_what_is_there_and_how_it_came_there() -> None:
    params = {"installed": "no", "again": "no"}
    program = find("tailcall_load_window").prepare(params, version="5.10")
    ((found, *_)) = Explorer(program, RandomWalk(0), Budget(executions=1)).explore().findings
    finding = found.finding
    text = "\n".join(line for detail in finding.details for line in (detail.heading, *detail.lines))

    assert (finding.kind, finding.title) == ("stale-tail-call", STALE)
    assert finding.threads == ("updater",)
    for part in (
        "bpf_array#main.1.ptrs[0] holds bpf_prog#main.8 (bpf_prog_t2)",
        "tailcall_bypass at bpf_prog_caller+0x48 (0x",
        "nop, is to be jmp",
        "(bpf_prog_t2+0xb)",
        "State of its sites: C",
        "History of bpf_array#main.1.ptrs[0]:",
        "bpf_prog#main.8 (bpf_prog_t2) by updater",
    ):
        assert part in text
