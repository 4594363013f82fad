"""kernel/bpf/syscall.c (v5.10): commands on the elements of a map, and BPF_MAP_FREEZE

Not modelled: batches, look-up with deletion; waiting for writers in a freeze.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from kernel_model.bpf.arraymap import bpf_percpu_array_copy, bpf_percpu_array_update
from kernel_model.bpf.attr import (
    BPF_F_LOCK,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_PROG_ARRAY,
    MapElemAttr,
)
from kernel_model.bpf.capability import bpf_capable
from kernel_model.bpf.fd_arraymap import (
    bpf_fd_array_map_lookup_elem,
    bpf_fd_array_map_update_elem,
)
from kernel_model.bpf.fd_hashtab import bpf_fd_htab_map_lookup_elem, bpf_fd_htab_map_update_elem
from kernel_model.bpf.map import (
    BpfMap,
    bpf_disable_instrumentation,
    map_value_has_spin_lock,
    read_map_value,
    read_map_value_locked,
    round_up,
)
from kernel_model.bpf.map_refs import __bpf_map_get
from kernel_model.bpf.percpu import num_possible_cpus
from kernel_model.bpf.uaccess import copy_from_user, copy_to_user, kmalloc_buffer, memdup_user
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EBUSY, EINVAL, ENOENT, ENOMEM, EPERM
from kernel_model.linux.file import FMODE_READ, FMODE_WRITE, File, fdget, fput
from kernel_model.linux.mutex import mutex
from kernel_model.rcu.tree import rcu_read_lock, synchronize_rcu
from sim.macros import READ_ONCE, WRITE_ONCE

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


async def _with_map(
    kernel: Kernel,
    attr: MapElemAttr,
    command: Callable[[Kernel, MapElemAttr, BpfMap, File], Awaitable[int]],
) -> int:
    """Carry out a command on the map of a descriptor, whose file is pinned meanwhile."""
    f = await fdget(kernel, attr.map_fd)
    map = await __bpf_map_get(kernel, f)
    if isinstance(map, int):
        return map
    assert f is not None
    result = await command(kernel, attr, map, f)
    await fput(kernel, f)
    return result


async def map_get_sys_perms(map: BpfMap, f: File) -> int:
    if await READ_ONCE(map.frozen):
        return f.f_mode & ~FMODE_WRITE
    return f.f_mode


@kernel_function
async def maybe_wait_bpf_programs(kernel: Kernel, map: BpfMap) -> None:
    """When the call returns, all programs use the new inner map."""
    if map.map_type == BPF_MAP_TYPE_HASH_OF_MAPS or map.map_type == BPF_MAP_TYPE_ARRAY_OF_MAPS:
        await synchronize_rcu(kernel)


# -- BPF_MAP_LOOKUP_ELEM -------------------------------------------------------------------------


async def map_lookup_elem(kernel: Kernel, attr: MapElemAttr) -> int:
    if attr.unused_tail:
        return -EINVAL
    if attr.flags & ~BPF_F_LOCK:
        return -EINVAL
    return await _with_map(kernel, attr, _map_lookup_elem)


async def _map_lookup_elem(kernel: Kernel, attr: MapElemAttr, map: BpfMap, f: File) -> int:
    if not await map_get_sys_perms(map, f) & FMODE_READ:
        return -EPERM
    if attr.flags & BPF_F_LOCK and not map_value_has_spin_lock(map):
        return -EINVAL
    key = await memdup_user(kernel, attr.key, map.key_size)
    if isinstance(key, int):
        return key
    if not await kmalloc_buffer(kernel):
        return -ENOMEM
    value = await bpf_map_copy_value(kernel, map, key, attr.flags)
    if isinstance(value, int):
        return value
    return await copy_to_user(kernel, attr.value, value)


@kernel_function
async def bpf_map_copy_value(kernel: Kernel, map: Any, key: bytes, flags: int) -> bytes | int:
    """What user space gets for a key, or -errno."""
    value: bytes | int
    async with bpf_disable_instrumentation():
        if map.map_type == BPF_MAP_TYPE_PERCPU_ARRAY:
            value = await bpf_percpu_array_copy(kernel, map, key)
        elif map.map_type in (BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_PROG_ARRAY):
            value = await bpf_fd_array_map_lookup_elem(kernel, map, key)
        elif map.map_type == BPF_MAP_TYPE_HASH_OF_MAPS:
            value = await bpf_fd_htab_map_lookup_elem(kernel, map, key)
        else:
            async with rcu_read_lock():
                ptr = await map.ops.map_lookup_elem(kernel, map, key)
                if ptr is None:
                    value = -ENOENT
                elif flags & BPF_F_LOCK:
                    value = await read_map_value_locked(map, ptr)
                else:
                    value = await read_map_value(map, ptr)
    await maybe_wait_bpf_programs(kernel, map)
    return value


# -- BPF_MAP_UPDATE_ELEM -------------------------------------------------------------------------


async def map_update_elem(kernel: Kernel, attr: MapElemAttr) -> int:
    if attr.unused_tail:
        return -EINVAL
    return await _with_map(kernel, attr, _map_update_elem)


async def _map_update_elem(kernel: Kernel, attr: MapElemAttr, map: BpfMap, f: File) -> int:
    if not await map_get_sys_perms(map, f) & FMODE_WRITE:
        return -EPERM
    if attr.flags & BPF_F_LOCK and not map_value_has_spin_lock(map):
        return -EINVAL
    key = await memdup_user(kernel, attr.key, map.key_size)
    if isinstance(key, int):
        return key
    if map.map_type == BPF_MAP_TYPE_PERCPU_ARRAY:
        value_size = round_up(map.value_size, 8) * num_possible_cpus(kernel)
    else:
        value_size = map.value_size
    if not await kmalloc_buffer(kernel):
        return -ENOMEM
    value = await copy_from_user(kernel, attr.value, value_size)
    if isinstance(value, int):
        return value
    return await bpf_map_update_value(kernel, map, f, key, value, attr.flags)


@kernel_function
async def bpf_map_update_value(
    kernel: Kernel, map: Any, f: File, key: bytes, value: bytes, flags: int
) -> int:
    error: int
    if map.map_type == BPF_MAP_TYPE_PROG_ARRAY:  # patches text, so it must be able to sleep
        return await bpf_fd_array_map_update_elem(kernel, map, f, key, value, flags)
    async with bpf_disable_instrumentation():
        if map.map_type == BPF_MAP_TYPE_PERCPU_ARRAY:
            error = await bpf_percpu_array_update(kernel, map, key, value, flags)
        elif map.map_type == BPF_MAP_TYPE_ARRAY_OF_MAPS:
            async with rcu_read_lock():
                error = await bpf_fd_array_map_update_elem(kernel, map, f, key, value, flags)
        elif map.map_type == BPF_MAP_TYPE_HASH_OF_MAPS:
            async with rcu_read_lock():
                error = await bpf_fd_htab_map_update_elem(kernel, map, f, key, value, flags)
        else:
            async with rcu_read_lock():
                error = await map.ops.map_update_elem(kernel, map, key, value, flags)
    await maybe_wait_bpf_programs(kernel, map)
    return error


# -- BPF_MAP_DELETE_ELEM -------------------------------------------------------------------------


async def map_delete_elem(kernel: Kernel, attr: MapElemAttr) -> int:
    if attr.unused_tail or attr.value is not None or attr.flags:
        return -EINVAL
    return await _with_map(kernel, attr, _map_delete_elem)


async def _map_delete_elem(kernel: Kernel, attr: MapElemAttr, map: BpfMap, f: File) -> int:
    if not await map_get_sys_perms(map, f) & FMODE_WRITE:
        return -EPERM
    key = await memdup_user(kernel, attr.key, map.key_size)
    if isinstance(key, int):
        return key
    if map.map_type == BPF_MAP_TYPE_PROG_ARRAY:
        deleted: int = await map.ops.map_delete_elem(kernel, map, key)
        return deleted
    async with bpf_disable_instrumentation():
        async with rcu_read_lock():
            error = await map.ops.map_delete_elem(kernel, map, key)
    await maybe_wait_bpf_programs(kernel, map)
    return error


# -- BPF_MAP_GET_NEXT_KEY ------------------------------------------------------------------------


async def map_get_next_key(kernel: Kernel, attr: MapElemAttr) -> int:
    if attr.unused_tail or attr.flags:
        return -EINVAL
    return await _with_map(kernel, attr, _map_get_next_key)


async def _map_get_next_key(kernel: Kernel, attr: MapElemAttr, map: BpfMap, f: File) -> int:
    if not await map_get_sys_perms(map, f) & FMODE_READ:
        return -EPERM
    key = None
    if attr.key is not None:
        copied = await memdup_user(kernel, attr.key, map.key_size)
        if isinstance(copied, int):
            return copied
        key = copied
    if not await kmalloc_buffer(kernel):
        return -ENOMEM
    async with rcu_read_lock():
        next_key = await map.ops.map_get_next_key(kernel, map, key)
    if isinstance(next_key, int):
        return next_key
    return await copy_to_user(kernel, attr.value, next_key)


# -- BPF_MAP_FREEZE ------------------------------------------------------------------------------


async def map_freeze(kernel: Kernel, attr: MapElemAttr) -> int:
    if attr.unused_tail or attr.key is not None or attr.value is not None or attr.flags:
        return -EINVAL
    return await _with_map(kernel, attr, _map_freeze)


async def _map_freeze(kernel: Kernel, attr: MapElemAttr, map: BpfMap, f: File) -> int:
    del attr, f
    async with mutex(map.freeze_mutex):
        if await READ_ONCE(map.frozen):
            return -EBUSY
        if not bpf_capable(kernel):
            return -EPERM
        await WRITE_ONCE(map.frozen, True)
        return 0
