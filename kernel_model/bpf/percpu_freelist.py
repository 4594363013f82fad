"""kernel/bpf/percpu_freelist.c (v5.10): the preallocated elements that are free, by CPU

Not modelled: NMIs, and the extra list that only they fill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, final

from kernel_model.bpf.htab_elem import HtabElem
from kernel_model.bpf.map import Packed
from kernel_model.bpf.percpu import smp_processor_id
from kernel_model.linux.spinlock import spin_lock
from sim.macros import load, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_model.kernel import Kernel
    from sim.cells import Cell
    from sim.threads import Thread


class PcpuFreelistHead(NamedTuple):
    """The list of one CPU."""

    first: Cell[HtabElem | None]
    lock: Cell[Thread | None]


@final
class PcpuFreelist(Packed):
    """The lists of all CPUs."""

    KIND = "pcpu_freelist"

    def __init__(self, cpus: int) -> None:
        super().__init__()
        self.freelist: Final = [
            PcpuFreelistHead(
                self.embed(f"[{cpu}].first", 16 * cpu, 8, None),
                self.embed(f"[{cpu}].lock", 16 * cpu + 8, 4, None),
            )
            for cpu in range(cpus)
        ]


def pcpu_freelist_populate(s: PcpuFreelist, elems: Sequence[HtabElem]) -> None:
    """Spread the elements over the CPUs, before others see the lists."""
    pcpu_entries = len(elems) // len(s.freelist) + 1
    for cpu, head in enumerate(s.freelist):
        first = None
        for elem in elems[cpu * pcpu_entries : (cpu + 1) * pcpu_entries]:
            s.initial(elem.fnode_next, first)
            first = elem
        s.initial(head.first, first)


async def __pcpu_freelist_push(kernel: Kernel, s: PcpuFreelist, node: HtabElem) -> None:
    """Make an element free again, with interrupts off."""
    head = s.freelist[smp_processor_id(kernel)]
    async with spin_lock(head.lock):
        await store(node.fnode_next, await load(head.first))
        await store(head.first, node)


async def __pcpu_freelist_pop(kernel: Kernel, s: PcpuFreelist) -> HtabElem | None:
    """A free element, of this CPU's list if there is one, with interrupts off."""
    this_cpu = smp_processor_id(kernel)
    for head in s.freelist[this_cpu:] + s.freelist[:this_cpu]:
        async with spin_lock(head.lock):
            node = await load(head.first)
            if node is not None:
                await store(head.first, await load(node.fnode_next))
                return node
    return None
