"""kernel/bpf/syscall.c (v5.10): BPF_MAP_CREATE

Not modelled: offloaded maps, BTF (see `kernel_model.bpf.attr`), security modules; more than one
NUMA node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kernel_model.bpf.arraymap import array_map_ops, percpu_array_map_ops
from kernel_model.bpf.attr import (
    BPF_F_NUMA_NODE,
    BPF_F_RDONLY,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_INODE_STORAGE,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_OBJ_NAME_LEN,
    MapCreateAttr,
)
from kernel_model.bpf.fd_arraymap import array_of_maps_map_ops
from kernel_model.bpf.fd_hashtab import htab_of_maps_map_ops
from kernel_model.bpf.hashtab import htab_map_ops
from kernel_model.bpf.map import SIZEOF_BPF_SPIN_LOCK, BpfMap, MapOps
from kernel_model.bpf.map_refs import bpf_map_alloc_id, bpf_map_new_fd, bpf_map_put_with_uref
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EACCES, EFAULT, EINVAL, ENOTSUPP
from kernel_model.linux.file import FMODE_BOTH, FMODE_READ, FMODE_WRITE
from sim.errors import MisuseError

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel

bpf_map_types: Final[dict[int, MapOps[Any]]] = {
    BPF_MAP_TYPE_HASH: htab_map_ops,
    BPF_MAP_TYPE_ARRAY: array_map_ops,
    BPF_MAP_TYPE_PERCPU_ARRAY: percpu_array_map_ops,
    BPF_MAP_TYPE_ARRAY_OF_MAPS: array_of_maps_map_ops,
    BPF_MAP_TYPE_HASH_OF_MAPS: htab_of_maps_map_ops,
}


def bpf_map_type(ops: MapOps[Any]) -> None:
    """Make a type of maps known whose module this one cannot import."""
    bpf_map_types[ops.map_type] = ops


@kernel_function
async def map_create(kernel: Kernel, attr: MapCreateAttr) -> int:
    """The descriptor of a new map, or -errno."""
    if attr.unused_tail:
        return -EINVAL
    f_mode = bpf_get_file_flag(attr.map_flags)
    if f_mode < 0:
        return f_mode
    if attr.map_flags & BPF_F_NUMA_NODE and attr.numa_node != 0:
        return -EINVAL
    map = await find_and_alloc_map(kernel, attr)
    if isinstance(map, int):
        return map
    error = bpf_obj_name_cpy(attr.map_name) or map_check_btf(map)
    if error:
        await map.ops.map_free(kernel, map)
        return error
    await bpf_map_alloc_id(kernel, map)
    fd = await bpf_map_new_fd(kernel, map, f_mode)
    if fd < 0:
        await bpf_map_put_with_uref(kernel, map)
    return fd


async def find_and_alloc_map(kernel: Kernel, attr: MapCreateAttr) -> BpfMap | int:
    if not 0 < attr.map_type <= BPF_MAP_TYPE_INODE_STORAGE:
        return -EINVAL
    if attr.map_type not in bpf_map_types:
        raise MisuseError(f"maps of type {attr.map_type} are not modelled")
    ops = bpf_map_types[attr.map_type]
    error = ops.map_alloc_check(kernel, attr)
    if error:
        return error
    map: BpfMap | int = await ops.map_alloc(kernel, attr)
    if isinstance(map, BpfMap):
        map.set_ops(ops)
    return map


def bpf_get_file_flag(flags: int) -> int:
    """The mode of the file, or -errno."""
    if flags & BPF_F_RDONLY and flags & BPF_F_WRONLY:
        return -EINVAL
    if flags & BPF_F_RDONLY:
        return FMODE_READ
    if flags & BPF_F_WRONLY:
        return FMODE_WRITE
    return FMODE_BOTH


def bpf_obj_name_cpy(name: str) -> int:
    """Whether an object may have that name: 0 or -EINVAL."""
    if len(name) >= BPF_OBJ_NAME_LEN:
        return -EINVAL
    good = all((c.isascii() and c.isalnum()) or c in "_." for c in name)
    return 0 if good else -EINVAL


def map_check_btf(map: BpfMap) -> int:
    """Whether values may have their lock where they have it: 0 or -errno."""
    if map.spin_lock_off is None:
        return 0
    if map.map_flags & BPF_F_RDONLY_PROG:
        return -EACCES
    if map.map_type != BPF_MAP_TYPE_HASH and map.map_type != BPF_MAP_TYPE_ARRAY:
        return -ENOTSUPP
    if map.spin_lock_off + SIZEOF_BPF_SPIN_LOCK > map.value_size:
        return -EFAULT
    return 0
