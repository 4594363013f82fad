"""kernel/bpf/arraymap.c (v5.10): arrays whose slots hold pointers, and arrays of maps

User space writes file descriptors into the slots and reads ids. A slot holds a reference; what a
program finds in it, it uses without one.

Not modelled: arrays of perf events and cgroups; BTF. Arrays of programs have what is theirs in
`kernel_model.bpf.prog_array`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kernel_model.bpf.arraymap import (
    BpfArray,
    array_map_alloc,
    array_map_alloc_check,
    array_map_get_next_key,
    gen_index,
    u32,
)
from kernel_model.bpf.attr import (
    BPF_ANY,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    MapCreateAttr,
)
from kernel_model.bpf.insn import (
    BPF_DW,
    BPF_JA,
    BPF_JEQ,
    BPF_JMP_IMM,
    BPF_LDX_MEM,
    BPF_MOV64_IMM,
    BPF_REG_0,
    Insn,
)
from kernel_model.bpf.map import BpfMap, MapOps, read_pointer_once
from kernel_model.bpf.map_in_map import (
    bpf_map_fd_get_ptr,
    bpf_map_fd_put_ptr,
    bpf_map_fd_sys_lookup_elem,
    bpf_map_meta_alloc,
    bpf_map_meta_free,
)
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import E2BIG, EINVAL, ENOENT, ENOTSUPP
from kernel_model.linux.mutex import mutex_lock, mutex_unlock
from kernel_model.linux.slab import kfree
from kernel_model.rcu.tree import rcu_read_lock, synchronize_rcu
from sim.macros import load, note, xchg

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel
    from kernel_model.linux.file import File


def fd_array_map_alloc_check(kernel: Kernel, attr: MapCreateAttr) -> int:
    if attr.value_size != 4:
        return -EINVAL
    if attr.map_flags & (BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG):
        return -EINVAL
    return array_map_alloc_check(kernel, attr)


@kernel_function
async def fd_array_map_free(kernel: Kernel, array: BpfArray) -> None:
    if not kernel.has(Fix.REMOVE_SYNCHRONIZE_RCU):
        await synchronize_rcu(kernel)
    for i in range(array.max_entries):
        if await load(array.ptrs[i]) is not None:
            await note("BUG", f"slot {i} is not empty")
    await kfree(kernel, array, "bpf_map_area_free")


async def bpf_fd_array_map_lookup_elem(kernel: Kernel, array: BpfArray, key: bytes) -> bytes | int:
    """The id of what is in the slot, for user space."""
    if array.ops.map_fd_sys_lookup_elem is None:
        return -ENOTSUPP
    index = u32(key)
    async with rcu_read_lock():
        if index >= array.max_entries:
            return -ENOENT
        ptr = await read_pointer_once(array.ptrs[index & array.index_mask])
        if ptr is None:
            return -ENOENT
        id = await array.ops.map_fd_sys_lookup_elem(kernel, ptr)
    return id.to_bytes(4, "little")


@kernel_function
async def bpf_fd_array_map_update_elem(
    kernel: Kernel, array: BpfArray, map_file: File, key: bytes, value: bytes, map_flags: int
) -> int:
    index = u32(key)
    if map_flags != BPF_ANY:
        return -EINVAL
    if index >= array.max_entries:
        return -E2BIG
    assert array.ops.map_fd_get_ptr is not None
    assert array.ops.map_fd_put_ptr is not None
    new_ptr = await array.ops.map_fd_get_ptr(kernel, array, map_file, u32(value))
    if isinstance(new_ptr, int):
        return new_ptr
    old_ptr = await _replace(kernel, array, index, new_ptr)
    if old_ptr is not None:
        await array.ops.map_fd_put_ptr(kernel, array, old_ptr, True)
    return 0


async def _replace(kernel: Kernel, array: BpfArray, index: int, new_ptr: Any) -> Any:
    """Swap a pointer into a slot: the old one, a reference to which is to be dropped."""
    map_poke_run = array.ops.map_poke_run
    if map_poke_run is None:
        return await xchg(array.ptrs[index], new_ptr)
    locked = not kernel.has(Fix.REPLACE_UNLOCKED)
    if locked:
        await mutex_lock(array.aux.poke_mutex)
    old_ptr = await xchg(array.ptrs[index], new_ptr)
    early = old_ptr is not None and kernel.has(Fix.PUT_BEFORE_POKE)
    if early:
        assert array.ops.map_fd_put_ptr is not None
        await array.ops.map_fd_put_ptr(kernel, array, old_ptr, True)
    await map_poke_run(kernel, array, index, old_ptr, new_ptr)
    if locked:
        await mutex_unlock(array.aux.poke_mutex)
    return None if early else old_ptr


@kernel_function
async def fd_array_map_delete_elem(kernel: Kernel, array: BpfArray, key: bytes) -> int:
    return await __fd_array_map_delete_elem(kernel, array, key, need_defer=True)


async def __fd_array_map_delete_elem(
    kernel: Kernel, array: BpfArray, key: bytes, *, need_defer: bool
) -> int:
    index = u32(key)
    if index >= array.max_entries:
        return -E2BIG
    old_ptr = await _replace(kernel, array, index, None)
    if old_ptr is None:
        return -ENOENT
    assert array.ops.map_fd_put_ptr is not None
    await array.ops.map_fd_put_ptr(kernel, array, old_ptr, need_defer)
    return 0


async def bpf_fd_array_map_clear(kernel: Kernel, array: BpfArray, *, need_defer: bool) -> None:
    for i in range(array.max_entries):
        key = i.to_bytes(4, "little")
        await __fd_array_map_delete_elem(kernel, array, key, need_defer=need_defer)


# -- arrays of maps ------------------------------------------------------------------------------


async def array_of_map_alloc(kernel: Kernel, attr: MapCreateAttr) -> BpfArray | int:
    inner_map_meta = await bpf_map_meta_alloc(kernel, attr.inner_map_fd)
    if isinstance(inner_map_meta, int):
        return inner_map_meta
    map = await array_map_alloc(kernel, attr)
    if isinstance(map, int):
        await bpf_map_meta_free(kernel, inner_map_meta)
        return map
    map.set_inner_map_meta(inner_map_meta)
    return map


@kernel_function
async def array_of_map_free(kernel: Kernel, map: BpfArray) -> None:
    """No program can find the map any more, so its inner maps need not wait for any."""
    assert map.inner_map_meta is not None
    await bpf_map_meta_free(kernel, map.inner_map_meta)
    await bpf_fd_array_map_clear(kernel, map, need_defer=False)
    await fd_array_map_free(kernel, map)


@kernel_function
async def array_of_map_lookup_elem(kernel: Kernel, map: BpfArray, key: bytes) -> BpfMap | None:
    index = u32(key)
    if index >= map.max_entries:
        return None
    inner_map: BpfMap | None = await read_pointer_once(map.ptrs[index & map.index_mask])
    return inner_map


def array_of_map_gen_lookup(map: BpfArray) -> list[Insn]:
    """The look-up as instructions: r1 is the map, r2 points to the key, r0 becomes the result."""
    ret = BPF_REG_0
    return [
        *gen_index(map, after_check=5),
        BPF_LDX_MEM(BPF_DW, ret, ret, 0),
        BPF_JMP_IMM(BPF_JEQ, ret, 0, 1),
        BPF_JMP_IMM(BPF_JA, 0, 0, 1),
        BPF_MOV64_IMM(ret, 0),
    ]


array_of_maps_map_ops: Final[MapOps[BpfArray]] = MapOps(
    map_type=BPF_MAP_TYPE_ARRAY_OF_MAPS,
    map_alloc_check=fd_array_map_alloc_check,
    map_alloc=array_of_map_alloc,
    map_free=array_of_map_free,
    map_get_next_key=array_map_get_next_key,
    map_lookup_elem=array_of_map_lookup_elem,
    map_delete_elem=fd_array_map_delete_elem,
    map_fd_get_ptr=bpf_map_fd_get_ptr,
    map_fd_put_ptr=bpf_map_fd_put_ptr,
    map_fd_sys_lookup_elem=bpf_map_fd_sys_lookup_elem,
    map_gen_lookup=array_of_map_gen_lookup,
)
