"""arch/x86/net/bpf_jit_comp.c, bpf_arch_text_poke; kernel/bpf/core.c (v5.10): poke descriptors

A descriptor says which slot of which prog array a direct tail call mirrors, and where its two
sites are. It is looked at by updates of the array once it is stable.

Not modelled: kernel text as a target of bpf_arch_text_poke(); that a table of descriptors grows
one by one; what lies behind a prog array (a read of a slot that is not there is one of its end).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, final

from kernel_model.bpf.ksym import is_bpf_text_address
from kernel_model.fixes import Fix
from kernel_model.linux.errno import EBUSY, EINVAL, ERANGE
from kernel_model.linux.mutex import mutex, mutex_lock, mutex_unlock
from kernel_model.linux.slab import kzalloc
from kernel_model.x86.alternative import TextPatching, text_poke_bp, write_text
from kernel_model.x86.text import NOP5, POKE_SIZE, REL32, Site, Text
from sim.cells import Cells, Struct
from sim.macros import WRITE_ONCE, load, load_at, note

if TYPE_CHECKING:
    from kernel_model.bpf.arraymap import BpfArray
    from kernel_model.bpf.jit import BpfImage
    from kernel_model.bpf.prog import BpfProg, BpfProgAux
    from kernel_model.kernel import Kernel


class TailCall(NamedTuple):
    """Which slot a descriptor is about, and the number of the descriptor in the whole program."""

    map: BpfArray
    key: int
    poke: int


@final
class BpfJitPokeTab(Struct):
    """A table of `struct bpf_jit_poke_descriptor`.

    tailcall_target_stable  whether the sites of a descriptor agree with the slot
    tail_call               the slot
    owners                  the aux of the function that a descriptor's sites are in
    images                  the image that has them, once there is one; fixed before it is stable
    """

    KIND = "bpf_jit_poke_descriptor"

    tailcall_target_stable: Cells[bool]
    tail_call: Cells[TailCall]

    def __init__(self, calls: list[TailCall], owners: list[BpfProgAux]) -> None:
        self.add_cells("tailcall_target_stable", len(calls), value=False)
        self.add_cells("tail_call", len(calls), calls[0])
        for place, call in zip(self.tail_call, calls, strict=True):
            self.initial(place, call)
        self.owners: Final = list(owners)
        self.images: Final[list[BpfImage | None]] = [None] * len(calls)

    def sites(self, index: int, poke: int) -> tuple[Site | None, Site] | None:
        """The bypass and the target of a descriptor; None: the image has no such tail call."""
        image = self.images[index]
        assert image is not None
        return image.tail_sites.get(poke)


async def bpf_jit_add_poke_descriptor(
    kernel: Kernel, calls: list[TailCall], owners: list[BpfProgAux]
) -> BpfJitPokeTab | None:
    """Make the table of a program or function; None if memory is short."""
    return await kzalloc(kernel, BpfJitPokeTab, calls, owners)


async def bpf_arch_text_poke(kernel: Kernel, site: Site, old: Text, new: Text) -> int:
    """Change a site from `old` to `new`: 0, 1 if it is like that already, or -errno."""
    if not await is_bpf_text_address(kernel, site.ip):
        return -EINVAL
    return await __bpf_arch_text_poke(kernel, site, old, new)


async def __bpf_arch_text_poke(
    kernel: Kernel, site: Site, old: Text, new: Text, *, text_live: bool = True
) -> int:
    for text in (old, new):
        if text.target and not -REL32 <= text.target - site.ip - POKE_SIZE < REL32:
            return -ERANGE
    async with mutex(kernel.subsystem(TextPatching).text_mutex):
        now = await load(site.mem)
        if now != old:
            return -EBUSY
        if now == new:
            return 1
        if text_live:
            await text_poke_bp(kernel, site, new)
        else:
            for place in (site.mem, *site.views):
                await write_text(place, new, "memcpy")
    return 0


def jump_to(image: BpfImage | None) -> Text:
    """What a target site has for a program; a nop for none."""
    return NOP5 if image is None else Text("jmp", image.addr + image.layout.landing)


async def bpf_tail_call_direct_fixup(
    kernel: Kernel, tab: BpfJitPokeTab | None, aux: BpfProgAux, image: BpfImage
) -> None:
    """Make the tail calls of a new image agree with the prog arrays, one by one.

    tab  the descriptors, of which those of `aux` have their sites in the image
    """
    if tab is None:
        return
    mine = [i for i, owner in enumerate(tab.owners) if owner is aux]
    for i in mine:
        tab.images[i] = image
    if kernel.has(Fix.STABLE_FIRST):
        for i in mine:
            await WRITE_ONCE(tab.tailcall_target_stable[i], True)
    for i in mine:
        call = await load(tab.tail_call[i])
        array_aux = call.map.aux
        locked = not kernel.has(Fix.FIXUP_UNLOCKED)
        if locked:
            await mutex_lock(array_aux.poke_mutex)
        target = await _slot(call)
        if target is not None:
            await _fix_up(kernel, tab.sites(i, call.poke), await load(target.bpf_func))
        await WRITE_ONCE(tab.tailcall_target_stable[i], True)
        if locked:
            await mutex_unlock(array_aux.poke_mutex)


async def _slot(call: TailCall) -> BpfProg | None:
    """What is in a slot. The verifier has seen to it that the array has one, or so it thinks."""
    array = call.map
    if call.key < len(array.ptrs):
        found: BpfProg | None = await load(array.ptrs[call.key])
        return found
    slot = array.ptrs.addr + 8 * call.key
    if await load_at(min(slot, array.addr + array.size), 8):
        raise AssertionError("an access beyond the array is fatal")
    return None  # of what is allocated, some bytes are no slots


async def poke_null() -> None:
    """The addresses of a descriptor that no tail call has filled in are NULL."""
    await load_at(0, 8)
    raise AssertionError("an access to NULL is fatal")


async def _fix_up(kernel: Kernel, sites: tuple[Site | None, Site] | None, target: BpfImage) -> None:
    if sites is None:
        await poke_null()
        return
    bypass, site = sites
    error = await __bpf_arch_text_poke(kernel, site, NOP5, jump_to(target), text_live=False)
    if error < 0:
        await note("BUG", "bpf_tail_call_direct_fixup: target")
    if bypass is not None:
        skip = Text("jmp", site.ip + POKE_SIZE)
        error = await __bpf_arch_text_poke(kernel, bypass, skip, NOP5, text_live=False)
        if error < 0:
            await note("BUG", "bpf_tail_call_direct_fixup: bypass")
