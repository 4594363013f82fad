"""arch/x86/kernel/alternative.c (v5.10): patching text that CPUs execute

`text_poke_bp` changes five bytes in steps: a breakpoint over the first byte, all CPUs synchronised,
the other four bytes, synchronised, the first byte, synchronised. Who meets the breakpoint gets the
new instruction emulated by its handler. So each CPU changes over once, when the breakpoint reaches
it, and no CPU ever executes half an instruction.

Not modelled: several sites in one batch; CPUs that cannot take the interrupt of a synchronisation
for a while; the temporary mapping that bytes are written through; early boot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from kernel_model.fixes import Fix
from kernel_model.linux.task import might_sleep
from kernel_model.x86.text import INT3, Site, Text
from sim import ops
from sim.cells import Cell, Struct, cell
from sim.macros import WRITE_ONCE, note, rmw, smp_load_acquire, smp_store_release, wait_until
from sim.ops import Op
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


@final
class TextPatching(Struct):
    """The lock of all patching, and the patch in progress.

    bp_desc  the site's address and the new instruction, None: nothing is being patched
    refs     of the patch: the patching task and those who look at it
    """

    KIND = "text_patching"

    text_mutex: Cell[Thread | None] = cell(None)
    bp_desc: Cell[tuple[int, Text] | None] = cell(None)
    refs: Cell[int] = cell(0)


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
    patching = kernel.subsystem(TextPatching)
    if kernel.has(Fix.POKE_NO_INT3):
        await write_text(site.mem, Text("torn"), "text_poke tail")
        await text_poke_sync(site, Text("torn"))
        await write_text(site.mem, new, "text_poke")
        await text_poke_sync(site, new)
        return
    await WRITE_ONCE(patching.refs, 1)  # a new descriptor for every patch, in C
    await smp_store_release(patching.bp_desc, (site.ip, new))
    await write_text(site.mem, INT3, "text_poke int3")
    await text_poke_sync(site, INT3)
    # Nobody sees the other four bytes: after the second synchronisation all see a breakpoint still.
    await write_text(site.mem, Text("int3", new.target), "text_poke tail")
    await write_text(site.mem, new, "text_poke")
    await text_poke_sync(site, new)
    await WRITE_ONCE(patching.bp_desc, None)
    if await rmw(patching.refs, "add", -1, "atomic_dec_and_test") != 1:
        await wait_until(_unused, patching.refs, name="atomic_cond_read_acquire")


def _unused(refs: int) -> bool:
    return refs == 0


async def _poke_int3_handler(kernel: Kernel, site: Site) -> Text:
    """A CPU has met a breakpoint: the instruction that it goes on with."""
    patching = kernel.subsystem(TextPatching)
    desc = await smp_load_acquire(patching.bp_desc)
    if desc is None or not await rmw(patching.refs, "inc_not_zero", 1, "try_get_desc"):
        seen = await smp_load_acquire(site.mem)  # the patch is over: execute it again
        if seen.op == "int3":
            await note("BUG", f"int3 at {site.image.name}+{site.ip - site.image.addr:#x}")
        return seen
    ip, new = desc
    found = new if ip == site.ip else await smp_load_acquire(site.mem)
    await rmw(patching.refs, "add", -1, "put_desc")
    return found


async def _fetch_site(kernel: Kernel, site: Site) -> Text:
    """What the CPU executes at a site: of a breakpoint, what its handler emulates."""
    seen = await site.fetch()
    if seen.op == "int3":
        return await _poke_int3_handler(kernel, site)
    if seen.op == "torn":
        await note("BUG", f"invalid opcode at {site.image.name}+{site.ip - site.image.addr:#x}")
    return seen
