"""kernel/bpf/hashtab.c (v5.10): hashes of maps

User space writes file descriptors and reads ids. An element holds a reference to its inner map;
what a program finds, it uses without one.

Not modelled: BTF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kernel_model.bpf.arraymap import u32
from kernel_model.bpf.attr import BPF_MAP_TYPE_HASH_OF_MAPS, MapCreateAttr
from kernel_model.bpf.hashtab import (
    HTAB_MAP_LOOKUP_ELEM,
    __htab_map_lookup_elem,
    htab_map_delete_elem,
    htab_map_get_next_key,
    htab_map_update_elem,
)
from kernel_model.bpf.htab_alloc import (
    BpfHtab,
    htab_map_alloc,
    htab_map_alloc_check,
    htab_map_free,
)
from kernel_model.bpf.htab_elem import KEY, HtabElem
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU64_IMM,
    BPF_DW,
    BPF_EMIT_CALL,
    BPF_JEQ,
    BPF_JMP_IMM,
    BPF_LDX_MEM,
    BPF_REG_0,
    Insn,
)
from kernel_model.bpf.map import BpfMap, MapOps, read_pointer_once, round_up
from kernel_model.bpf.map_in_map import (
    bpf_map_fd_get_ptr,
    bpf_map_fd_put_ptr,
    bpf_map_fd_sys_lookup_elem,
    bpf_map_meta_alloc,
    bpf_map_meta_free,
)
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EINVAL, ENOENT
from kernel_model.rcu.tree import rcu_read_lock
from sim.macros import load

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel
    from kernel_model.linux.file import File


def fd_htab_map_alloc_check(kernel: Kernel, attr: MapCreateAttr) -> int:
    if attr.value_size != 4:
        return -EINVAL
    return htab_map_alloc_check(kernel, attr)


@kernel_function
async def fd_htab_map_free(kernel: Kernel, htab: BpfHtab) -> None:
    """No program can find the map any more, so its inner maps need not wait for any."""
    for bucket in htab.buckets.bucket:
        n = await load(bucket.head)
        while isinstance(n, HtabElem):
            await bpf_map_fd_put_ptr(kernel, htab, await load(n.ptr), False)
            n = await load(n.next)
    await htab_map_free(kernel, htab)


async def bpf_fd_htab_map_lookup_elem(kernel: Kernel, htab: BpfHtab, key: bytes) -> bytes | int:
    """The id of the inner map, for user space."""
    async with rcu_read_lock():
        l = await __htab_map_lookup_elem(kernel, htab, key)
        if l is None:
            return -ENOENT
        id = await bpf_map_fd_sys_lookup_elem(kernel, await read_pointer_once(l.ptr))
    return id.to_bytes(4, "little")


@kernel_function
async def bpf_fd_htab_map_update_elem(
    kernel: Kernel, htab: BpfHtab, map_file: File, key: bytes, value: bytes, map_flags: int
) -> int:
    ptr = await bpf_map_fd_get_ptr(kernel, htab, map_file, u32(value))
    if isinstance(ptr, int):
        return ptr
    error = await htab_map_update_elem(kernel, htab, key, ptr, map_flags)
    if error:
        await bpf_map_fd_put_ptr(kernel, htab, ptr, False)
    return error


async def htab_of_map_alloc(kernel: Kernel, attr: MapCreateAttr) -> BpfHtab | int:
    inner_map_meta = await bpf_map_meta_alloc(kernel, attr.inner_map_fd)
    if isinstance(inner_map_meta, int):
        return inner_map_meta
    map = await htab_map_alloc(kernel, attr)
    if isinstance(map, int):
        await bpf_map_meta_free(kernel, inner_map_meta)
        return map
    map.set_inner_map_meta(inner_map_meta)
    return map


@kernel_function
async def htab_of_map_free(kernel: Kernel, map: BpfHtab) -> None:
    assert map.inner_map_meta is not None
    await bpf_map_meta_free(kernel, map.inner_map_meta)
    await fd_htab_map_free(kernel, map)


@kernel_function
async def htab_of_map_lookup_elem(kernel: Kernel, map: BpfHtab, key: bytes) -> BpfMap | None:
    l = await __htab_map_lookup_elem(kernel, map, key)
    return None if l is None else await read_pointer_once(l.ptr)


def htab_of_map_gen_lookup(map: BpfHtab) -> list[Insn]:
    """The look-up as instructions: r1 is the map, r2 points to the key, r0 becomes the result."""
    ret = BPF_REG_0
    return [
        BPF_EMIT_CALL(HTAB_MAP_LOOKUP_ELEM),
        BPF_JMP_IMM(BPF_JEQ, ret, 0, 2),
        BPF_ALU64_IMM(BPF_ADD, ret, KEY + round_up(map.key_size, 8)),
        BPF_LDX_MEM(BPF_DW, ret, ret, 0),
    ]


htab_of_maps_map_ops: Final[MapOps[BpfHtab]] = MapOps(
    map_type=BPF_MAP_TYPE_HASH_OF_MAPS,
    map_alloc_check=fd_htab_map_alloc_check,
    map_alloc=htab_of_map_alloc,
    map_free=htab_of_map_free,
    map_get_next_key=htab_map_get_next_key,
    map_lookup_elem=htab_of_map_lookup_elem,
    map_delete_elem=htab_map_delete_elem,
    map_fd_get_ptr=bpf_map_fd_get_ptr,
    map_fd_put_ptr=bpf_map_fd_put_ptr,
    map_fd_sys_lookup_elem=bpf_map_fd_sys_lookup_elem,
    map_gen_lookup=htab_of_map_gen_lookup,
)
