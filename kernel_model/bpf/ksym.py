"""kernel/bpf/core.c, bpf_prog_kallsyms_add (v5.10): which addresses are text of programs

The tree of symbols is ordered by address. A program is in it from the end of its load until its
last reference is gone; patching an address that is not in it is refused.

Not modelled: names in /proc/kallsyms; symbols of trampolines.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple, final

from kernel_model.linux.spinlock import spin_lock_bh
from kernel_model.rcu.tree import rcu_assign_pointer, rcu_dereference_raw
from sim.cells import Cell, Struct, cell
from sim.macros import load
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel
    from kernel_model.x86.text import Image


class BpfKsym(NamedTuple):
    """`struct bpf_ksym`: the text from `start` to `end` is that of the function `name`."""

    start: int
    end: int
    name: str


@final
class BpfKsyms(Struct):
    """The tree, as its nodes in order, and the lock of who changes it."""

    KIND = "bpf_ksyms"

    bpf_tree: Cell[tuple[BpfKsym, ...]] = cell(())
    bpf_lock: Cell[Thread | None] = cell(None)


def _ksym(image: Image) -> BpfKsym:
    return BpfKsym(image.addr, image.addr + image.length, image.name)


async def bpf_ksym_add(kernel: Kernel, image: Image) -> None:
    ksyms = kernel.subsystem(BpfKsyms)
    async with spin_lock_bh(ksyms.bpf_lock):
        tree = await load(ksyms.bpf_tree)
        await rcu_assign_pointer(ksyms.bpf_tree, tuple(sorted((*tree, _ksym(image)))))


async def bpf_ksym_del(kernel: Kernel, image: Image) -> None:
    ksyms = kernel.subsystem(BpfKsyms)
    gone: Final = _ksym(image)
    async with spin_lock_bh(ksyms.bpf_lock):
        tree = await load(ksyms.bpf_tree)
        await rcu_assign_pointer(ksyms.bpf_tree, tuple(ksym for ksym in tree if ksym != gone))


async def is_bpf_text_address(kernel: Kernel, addr: int) -> bool:
    tree = await rcu_dereference_raw(kernel.subsystem(BpfKsyms).bpf_tree)
    at = bisect_right(tree, (addr, 1 << 64)) - 1
    return at >= 0 and addr < tree[at].end
