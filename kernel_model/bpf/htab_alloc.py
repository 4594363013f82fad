"""kernel/bpf/hashtab.c (v5.10): how hash maps are made and freed

The seed of the hash is always 0, so that the bucket of a key is the same in every run.

Not modelled: LRU and per-CPU hashes; limits on locked memory; from which CPU's free list the extra
elements come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from kernel_model.bpf.attr import (
    BPF_F_ACCESS_MASK,
    BPF_F_NO_COMMON_LRU,
    BPF_F_NO_PREALLOC,
    BPF_F_NUMA_NODE,
    BPF_F_ZERO_SEED,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    MapCreateAttr,
)
from kernel_model.bpf.capability import bpf_capable
from kernel_model.bpf.htab_elem import (
    KEY,
    SIZEOF_BUCKET,
    Buckets,
    HtabElem,
    HtabElems,
    hlist_nulls_del_rcu,
)
from kernel_model.bpf.insn import MAX_BPF_STACK
from kernel_model.bpf.map import (
    KMALLOC_MAX_SIZE,
    U32_MAX,
    BpfMap,
    bpf_map_charge_init,
    bpf_map_flags_access_ok,
    round_up,
)
from kernel_model.bpf.percpu import num_possible_cpus
from kernel_model.bpf.percpu_freelist import PcpuFreelist, pcpu_freelist_populate
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import E2BIG, EINVAL, ENOMEM, EPERM
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.rcu.tree import rcu_barrier, synchronize_rcu
from sim.cells import Cell, Cells, Struct, cell
from sim.macros import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_model.kernel import Kernel

SIZEOF_BPF_HTAB: Final = 640

HTAB_CREATE_FLAG_MASK: Final = (
    BPF_F_NO_PREALLOC | BPF_F_NO_COMMON_LRU | BPF_F_NUMA_NODE | BPF_F_ACCESS_MASK | BPF_F_ZERO_SEED
)


@final
class ExtraElems(Struct):
    """For each CPU the element that takes the place of the next one that is replaced."""

    KIND = "extra_elems"
    elem: Cells[HtabElem]

    def __init__(self, elems: Sequence[HtabElem]) -> None:
        self.add_cells("elem", len(elems), elems[0])
        for place, elem in zip(self.elem, elems, strict=True):
            self.initial(place, elem)


@final
class BpfHtab(BpfMap):
    """struct bpf_htab.

    buckets      where the lists begin
    elem_size    bytes of an element
    count        of elements, if they are not preallocated; if they are,
    elems        all elements,
    freelist     those that are free, and
    extra_elems  those kept for replacing others
    """

    KIND = "bpf_htab"

    count: Cell[int] = cell(0, offset=584, size=4)

    n_buckets: int
    elem_size: int
    buckets: Buckets
    elems: HtabElems | None = None
    freelist: PcpuFreelist
    extra_elems: ExtraElems | None = None

    def __init__(self, attr: MapCreateAttr) -> None:
        super().__init__(attr)
        self.set_constant("n_buckets", 588, 4, roundup_pow_of_two(attr.max_entries))
        elem_size = KEY + round_up(attr.key_size, 8) + round_up(attr.value_size, 8)
        self.set_constant("elem_size", 592, 4, elem_size)
        self.size = SIZEOF_BPF_HTAB


def roundup_pow_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def htab_is_prealloc(htab: BpfHtab) -> bool:
    return not htab.map_flags & BPF_F_NO_PREALLOC


def htab_is_fd(htab: BpfHtab) -> bool:
    """Whether the values are pointers."""
    return htab.map_type == BPF_MAP_TYPE_HASH_OF_MAPS


# -- creation ------------------------------------------------------------------------------------


def htab_map_alloc_check(kernel: Kernel, attr: MapCreateAttr) -> int:
    if attr.map_flags & BPF_F_ZERO_SEED and not bpf_capable(kernel):
        return -EPERM
    if attr.map_flags & ~HTAB_CREATE_FLAG_MASK or not bpf_map_flags_access_ok(attr.map_flags):
        return -EINVAL
    if attr.map_flags & BPF_F_NO_COMMON_LRU:
        return -EINVAL
    if attr.max_entries == 0 or attr.key_size == 0 or attr.value_size == 0:
        return -EINVAL
    if attr.key_size > MAX_BPF_STACK:
        return -E2BIG
    if attr.value_size >= KMALLOC_MAX_SIZE - MAX_BPF_STACK - KEY:
        return -E2BIG
    return 0


async def htab_map_alloc(kernel: Kernel, attr: MapCreateAttr) -> BpfHtab | int:
    htab = await kzalloc(kernel, BpfHtab, attr, gfp="GFP_USER")
    if htab is None:
        return -ENOMEM
    error = _htab_map_cost(kernel, htab) or await _htab_map_init(kernel, htab)
    if error:
        await kfree(kernel, htab)
        return error
    return htab


def _htab_map_cost(kernel: Kernel, htab: BpfHtab) -> int:
    if htab.n_buckets > U32_MAX // SIZEOF_BUCKET:
        return -E2BIG
    elems = htab.max_entries + num_possible_cpus(kernel)
    return bpf_map_charge_init(htab.n_buckets * SIZEOF_BUCKET + htab.elem_size * elems)


async def _htab_map_init(kernel: Kernel, htab: BpfHtab) -> int:
    buckets = await kzalloc(kernel, Buckets, htab.n_buckets, gfp="GFP_USER")
    if buckets is None:
        return -ENOMEM
    htab.set_constant("buckets", 256, 8, buckets)
    if htab_is_prealloc(htab):
        error = await prealloc_init(kernel, htab) or await alloc_extra_elems(kernel, htab)
        if error:
            await kfree(kernel, buckets, "bpf_map_area_free")
            return error
    return 0


async def prealloc_init(kernel: Kernel, htab: BpfHtab) -> int:
    cpus = num_possible_cpus(kernel)
    count = htab.max_entries + cpus
    elems = await kzalloc(kernel, HtabElems, htab, count, fd=htab_is_fd(htab), gfp="GFP_USER")
    if elems is None:
        return -ENOMEM
    freelist = await kzalloc(kernel, PcpuFreelist, cpus, gfp="GFP_USER")
    if freelist is None:
        await kfree(kernel, elems, "bpf_map_area_free")
        return -ENOMEM
    htab.set_constant("elems", 264, 8, elems)
    htab.set_constant("freelist", 320, 8, freelist)
    pcpu_freelist_populate(freelist, [HtabElem(elems, i) for i in range(cpus, count)])
    return 0


async def alloc_extra_elems(kernel: Kernel, htab: BpfHtab) -> int:
    assert htab.elems is not None
    extra = [HtabElem(htab.elems, i) for i in range(num_possible_cpus(kernel))]
    extra_elems = await kzalloc(kernel, ExtraElems, extra, gfp="GFP_USER")
    if extra_elems is None:
        await prealloc_destroy(kernel, htab)
        return -ENOMEM
    htab.set_constant("extra_elems", 576, 8, extra_elems)
    return 0


# -- the end -------------------------------------------------------------------------------------


@kernel_function
async def htab_map_free(kernel: Kernel, htab: BpfHtab) -> None:
    if not kernel.has(Fix.REMOVE_SYNCHRONIZE_RCU):
        await synchronize_rcu(kernel)
    await rcu_barrier(kernel)
    if htab_is_prealloc(htab):
        await prealloc_destroy(kernel, htab)
    else:
        await delete_all_elements(kernel, htab)
    await kfree(kernel, htab.extra_elems, "free_percpu")
    await kfree(kernel, htab.buckets, "bpf_map_area_free")
    await kfree(kernel, htab)


async def prealloc_destroy(kernel: Kernel, htab: BpfHtab) -> None:
    await kfree(kernel, htab.elems, "bpf_map_area_free")
    await kfree(kernel, htab.freelist, "free_percpu")


async def delete_all_elements(kernel: Kernel, htab: BpfHtab) -> None:
    for bucket in htab.buckets.bucket:
        n = await load(bucket.head)
        while isinstance(n, HtabElem):
            following = await hlist_nulls_del_rcu(n, bucket.head)
            await kfree(kernel, n.area)
            n = following
