"""arch/x86/kernel/alternative.c (v5.10): patching text that CPUs execute

`text_poke_bp` changes five bytes in steps: a breakpoint over the first byte, all CPUs synchronised,
the other four bytes, synchronised, the first byte, synchronised. Who meets the breakpoint gets the
new instruction emulated by its handler. So each CPU changes over once, when the breakpoint reaches
it, and no CPU ever executes half an instruction.

The handler takes no step here: it has interrupts off, so that the synchronisation waits for it, and
what it finds is always the patch whose breakpoint it met.

Not modelled: the descriptor of the patch, and references to it; several sites in one batch; CPUs
that cannot take the interrupt of a synchronisation for a while; the temporary mapping that bytes
are written through; early boot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from kernel_model.fixes import Fix
from kernel_model.linux.task import might_sleep
from kernel_model.x86.text import Site, Text
from sim import ops
from sim.cells import Cell, Struct, cell
from sim.macros import note
from sim.ops import Op
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


@final
class TextPatching(Struct):
    """The lock of all patching."""

    KIND = "text_patching"

    text_mutex: Cell[Thread | None] = cell(None)


def write_text(place: Cell[Text], value: Text, name: str) -> Op[None]:
    """Write instruction bytes, which CPUs may be fetching."""
    return Op(ops.STORE, name, place.addr, place.size, place, value, ops.RELEASE)


async def text_poke_sync(site: Site, now: Text) -> None:
    """Every CPU executes a serializing instruction, and sees memory as it is from then on."""
    for view in site.views:
        await write_text(view, now, "do_sync_core")


async def text_poke_bp(kernel: Kernel, site: Site, new: Text) -> None:
    """Change the instruction at a site; the caller holds text_mutex."""
    await might_sleep()
    if kernel.has(Fix.POKE_NO_INT3):
        await write_text(site.mem, Text("torn"), "text_poke tail")
        await text_poke_sync(site, Text("torn"))
        await write_text(site.mem, new, "text_poke")
        await text_poke_sync(site, new)
        return
    int3 = Text("int3", new.target, new.op)
    await write_text(site.mem, int3, "text_poke int3")
    await text_poke_sync(site, int3)
    # The other four bytes: nobody sees them, and nobody sees anything new when synchronised again.
    await write_text(site.mem, int3, "text_poke tail")
    await write_text(site.mem, new, "text_poke")
    await text_poke_sync(site, new)


async def _fetch_site(kernel: Kernel, site: Site) -> Text:
    """What the CPU executes at a site: of a breakpoint, what poke_int3_handler() emulates."""
    del kernel
    seen = await site.fetch()
    if seen.op == "int3":
        assert seen.emulates is not None
        return Text(seen.emulates, seen.target)
    if seen.op == "torn":
        await note("BUG", f"invalid opcode at {site.image.name}+{site.ip - site.image.addr:#x}")
    return seen
