"""kernel/bpf/hashtab.c (v5.10): look-up, update and deletion in hash maps

How maps are made and freed is in `kernel_model.bpf.htab_alloc`, the lists and elements are in
`kernel_model.bpf.htab_elem`, hashes of maps in `kernel_model.bpf.fd_hashtab`.

Not modelled: LRU and per-CPU hashes, batches, iterators, BTF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kernel_model.bpf.attr import (
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_MAP_TYPE_HASH,
    BPF_NOEXIST,
)
from kernel_model.bpf.htab_alloc import (
    BpfHtab,
    htab_is_fd,
    htab_is_prealloc,
    htab_map_alloc,
    htab_map_alloc_check,
    htab_map_free,
)
from kernel_model.bpf.htab_elem import (
    KEY,
    Bucket,
    HtabElem,
    HtabElems,
    hlist_nulls_add_head_rcu,
    hlist_nulls_del_rcu,
    lookup_elem_raw,
    lookup_nulls_elem_raw,
    read_key,
    write_key,
)
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU64_IMM,
    BPF_EMIT_CALL,
    BPF_JEQ,
    BPF_JMP_IMM,
    BPF_REG_0,
    Insn,
)
from kernel_model.bpf.jhash import jhash
from kernel_model.bpf.map import (
    BpfMap,
    MapOps,
    ValuePtr,
    bpf_map_meta_equal,
    copy_map_value,
    copy_map_value_locked,
    map_value_has_spin_lock,
    round_up,
)
from kernel_model.bpf.percpu import smp_processor_id
from kernel_model.bpf.percpu_freelist import __pcpu_freelist_pop, __pcpu_freelist_push
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import E2BIG, EEXIST, EINVAL, ENOENT, ENOMEM
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.spinlock import spin_lock_irqsave
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace_held
from kernel_model.rcu.tree import call_rcu, rcu_dereference_raw, rcu_read_lock_held
from sim.macros import atomic_add_return, atomic_dec, load, note, store

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel

HTAB_MAP_LOOKUP_ELEM: Final = 0x10000
"""The immediate of a call of `__htab_map_lookup_elem`, which is no helper."""


async def _select_bucket(htab: BpfHtab, hash: int) -> Bucket:
    buckets = await load(htab.field("buckets"))
    bucket: Bucket = buckets.bucket[hash & (htab.n_buckets - 1)]
    return bucket


async def _warn_unless_reader(name: str) -> None:
    if not rcu_read_lock_held() and not rcu_read_lock_trace_held():
        await note("WARN", f"{name} outside of a reader")


# -- look-up -------------------------------------------------------------------------------------


@kernel_function
async def __htab_map_lookup_elem(kernel: Kernel, htab: BpfHtab, key: bytes) -> HtabElem | None:
    """The element; called by programs (HTAB_MAP_LOOKUP_ELEM) as well as by what follows."""
    await _warn_unless_reader("__htab_map_lookup_elem")
    hash = jhash(key, 0)
    bucket = await _select_bucket(htab, hash)
    return await lookup_nulls_elem_raw(bucket.head, hash, key, htab.n_buckets)


@kernel_function
async def htab_map_lookup_elem(kernel: Kernel, htab: BpfHtab, key: bytes) -> ValuePtr | None:
    l = await __htab_map_lookup_elem(kernel, htab, key)
    return None if l is None else l.value


def htab_map_gen_lookup(htab: BpfHtab) -> list[Insn]:
    """The look-up as instructions: r1 is the map, r2 points to the key, r0 becomes the result."""
    ret = BPF_REG_0
    return [
        BPF_EMIT_CALL(HTAB_MAP_LOOKUP_ELEM),
        BPF_JMP_IMM(BPF_JEQ, ret, 0, 1),
        BPF_ALU64_IMM(BPF_ADD, ret, KEY + round_up(htab.key_size, 8)),
    ]


async def htab_map_get_next_key(kernel: Kernel, htab: BpfHtab, key: bytes | None) -> bytes | int:
    i = 0
    if key is not None:
        hash = jhash(key, 0)
        head = htab.buckets.bucket[hash & (htab.n_buckets - 1)].head
        l = await lookup_nulls_elem_raw(head, hash, key, htab.n_buckets)
        if l is not None:
            next_l = await rcu_dereference_raw(l.next)
            if isinstance(next_l, HtabElem):
                return await read_key(next_l, htab.key_size)
            i = (hash & (htab.n_buckets - 1)) + 1
    for bucket in htab.buckets.bucket[i:]:
        next_l = await rcu_dereference_raw(bucket.head)
        if isinstance(next_l, HtabElem):
            return await read_key(next_l, htab.key_size)
    return -ENOENT


# -- elements ------------------------------------------------------------------------------------


async def htab_put_fd_value(kernel: Kernel, htab: BpfHtab, l: HtabElem) -> None:
    if htab.ops.map_fd_put_ptr is not None:
        ptr = await load(l.ptr)
        await htab.ops.map_fd_put_ptr(kernel, htab, ptr, True)


async def htab_elem_free_rcu(kernel: Kernel, htab: BpfHtab, l: HtabElem) -> None:
    """No reader of rcu has the element any more; the map must still be there."""
    await load(htab.field("map_type"))  # of a per-CPU hash there would be more to free
    await kfree(kernel, l.area)


async def free_htab_elem(kernel: Kernel, htab: BpfHtab, l: HtabElem) -> None:
    """The element has been unlinked; the bucket's lock is held."""
    await htab_put_fd_value(kernel, htab, l)
    if htab_is_prealloc(htab):
        await __pcpu_freelist_push(kernel, htab.freelist, l)
    else:
        await atomic_dec(htab.count)
        await call_rcu(kernel, htab_elem_free_rcu, kernel, htab, l)


async def alloc_htab_elem(
    kernel: Kernel,
    htab: BpfHtab,
    key: bytes,
    value: bytes | BpfMap,
    hash: int,
    old_elem: HtabElem | None,
) -> HtabElem | int:
    """A new element with that content, or -errno; the bucket's lock is held."""
    l_new: HtabElem | None
    if htab_is_prealloc(htab):
        if old_elem is not None:
            assert htab.extra_elems is not None
            pl_new = htab.extra_elems.elem[smp_processor_id(kernel)]
            l_new = await load(pl_new)
            await htab_put_fd_value(kernel, htab, old_elem)
            await store(pl_new, old_elem)
        else:
            l_new = await __pcpu_freelist_pop(kernel, htab.freelist)
            if l_new is None:
                return -E2BIG
    else:
        if await atomic_add_return(htab.count, 1) > htab.max_entries and old_elem is None:
            await atomic_dec(htab.count)
            return -E2BIG
        area = await kzalloc(kernel, HtabElems, htab, 1, fd=htab_is_fd(htab), gfp="GFP_ATOMIC")
        if area is None:
            await atomic_dec(htab.count)
            return -ENOMEM
        l_new = HtabElem(area, 0)
    await write_key(l_new, key)
    if isinstance(value, BpfMap):
        await store(l_new.ptr, value)
    else:
        await copy_map_value(htab, l_new.value, value)
    await store(l_new.hash, hash)
    return l_new


# -- update and deletion -------------------------------------------------------------------------


def check_flags(l_old: HtabElem | None, map_flags: int) -> int:
    if l_old is not None and map_flags & ~BPF_F_LOCK == BPF_NOEXIST:
        return -EEXIST
    if l_old is None and map_flags & ~BPF_F_LOCK == BPF_EXIST:
        return -ENOENT
    return 0


@kernel_function
async def htab_map_update_elem(
    kernel: Kernel, htab: BpfHtab, key: bytes, value: bytes | BpfMap, map_flags: int
) -> int:
    if map_flags & ~BPF_F_LOCK > BPF_EXIST:
        return -EINVAL
    await _warn_unless_reader("htab_map_update_elem")
    hash = jhash(key, 0)
    bucket = await _select_bucket(htab, hash)
    if map_flags & BPF_F_LOCK:
        if not map_value_has_spin_lock(htab):
            return -EINVAL
        assert isinstance(value, bytes)
        l_old = await lookup_nulls_elem_raw(bucket.head, hash, key, htab.n_buckets)
        error = check_flags(l_old, map_flags)
        if error:
            return error
        if l_old is not None:
            await copy_map_value_locked(htab, l_old.value, value)
            return 0
    async with spin_lock_irqsave(bucket.lock):
        return await _update_in_bucket(kernel, htab, bucket, key, value, hash, map_flags)


async def _update_in_bucket(
    kernel: Kernel,
    htab: BpfHtab,
    bucket: Bucket,
    key: bytes,
    value: bytes | BpfMap,
    hash: int,
    map_flags: int,
) -> int:
    l_old, pprev = await lookup_elem_raw(bucket.head, hash, key)
    error = check_flags(l_old, map_flags)
    if error:
        return error
    if l_old is not None and map_flags & BPF_F_LOCK:
        assert isinstance(value, bytes)
        await copy_map_value_locked(htab, l_old.value, value)
        return 0
    l_new = await alloc_htab_elem(kernel, htab, key, value, hash, l_old)
    if isinstance(l_new, int):
        return l_new
    await hlist_nulls_add_head_rcu(l_new, bucket.head)
    if l_old is not None:
        await hlist_nulls_del_rcu(l_old, l_new.next if pprev is bucket.head else pprev)
        if not htab_is_prealloc(htab):
            await free_htab_elem(kernel, htab, l_old)
    return 0


@kernel_function
async def htab_map_delete_elem(kernel: Kernel, htab: BpfHtab, key: bytes) -> int:
    await _warn_unless_reader("htab_map_delete_elem")
    hash = jhash(key, 0)
    bucket = await _select_bucket(htab, hash)
    async with spin_lock_irqsave(bucket.lock):
        l, pprev = await lookup_elem_raw(bucket.head, hash, key)
        if l is None:
            return -ENOENT
        await hlist_nulls_del_rcu(l, pprev)
        await free_htab_elem(kernel, htab, l)
        return 0


htab_map_ops: Final[MapOps[BpfHtab]] = MapOps(
    map_type=BPF_MAP_TYPE_HASH,
    map_meta_equal=bpf_map_meta_equal,
    map_alloc_check=htab_map_alloc_check,
    map_alloc=htab_map_alloc,
    map_free=htab_map_free,
    map_get_next_key=htab_map_get_next_key,
    map_lookup_elem=htab_map_lookup_elem,
    map_update_elem=htab_map_update_elem,
    map_delete_elem=htab_map_delete_elem,
    map_gen_lookup=htab_map_gen_lookup,
)
