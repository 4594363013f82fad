"""kernel/bpf/map_in_map.c (v5.10): what maps of maps have in common

`bpf_map_meta_equal` is in `kernel_model.bpf.map`, with the operations that are compared by it.

Not modelled: BTF of the template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.bpf.arraymap import BpfArray, array_map_ops
from kernel_model.bpf.map import BpfMap, map_value_has_spin_lock
from kernel_model.bpf.map_refs import __bpf_map_get, bpf_map_inc, bpf_map_put
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EINVAL, ENOMEM, ENOTSUPP
from kernel_model.linux.file import File, fdget, fput
from kernel_model.linux.slab import kfree, kzalloc
from sim.macros import WRITE_ONCE, load

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


@kernel_function
async def bpf_map_meta_alloc(kernel: Kernel, inner_map_ufd: int) -> BpfMap | int:
    """The template that inner maps have to equal, made after one of them; or -errno."""
    file = await fdget(kernel, inner_map_ufd)
    inner_map = await __bpf_map_get(kernel, file)
    if isinstance(inner_map, int):
        return inner_map
    assert file is not None
    inner_map_meta = await _meta_of(kernel, inner_map)
    await fput(kernel, file)
    return inner_map_meta


async def _meta_of(kernel: Kernel, inner_map: BpfMap) -> BpfMap | int:
    if inner_map.inner_map_meta is not None:
        return -EINVAL
    if inner_map.ops.map_meta_equal is None:
        return -ENOTSUPP
    if map_value_has_spin_lock(inner_map):
        return -ENOTSUPP
    meta: BpfMap | None
    if inner_map.ops is array_map_ops:  # look-ups in the inner map are generated from the template
        spec_v1 = inner_map.bypass_spec_v1
        meta = await kzalloc(kernel, BpfArray, inner_map, 0, bypass_spec_v1=spec_v1, gfp="GFP_USER")
    else:
        meta = await kzalloc(kernel, BpfMap, inner_map, gfp="GFP_USER")
    if meta is None:
        return -ENOMEM
    meta.set_ops(inner_map.ops)
    return meta


async def bpf_map_meta_free(kernel: Kernel, map_meta: BpfMap) -> None:
    await kfree(kernel, map_meta)


@kernel_function
async def bpf_map_fd_get_ptr(kernel: Kernel, map: BpfMap, map_file: File, ufd: int) -> BpfMap | int:
    """A new reference to an inner map that is to go into `map`, or -errno."""
    del map_file
    file = await fdget(kernel, ufd)
    inner_map = await __bpf_map_get(kernel, file)
    if isinstance(inner_map, int):
        return inner_map
    assert file is not None
    assert map.inner_map_meta is not None
    map_meta_equal = map.inner_map_meta.ops.map_meta_equal
    assert map_meta_equal is not None
    found: BpfMap | int = inner_map
    if map_meta_equal(map.inner_map_meta, inner_map):
        await bpf_map_inc(inner_map)
    else:
        found = -EINVAL
    await fput(kernel, file)
    return found


@kernel_function
async def bpf_map_fd_put_ptr(kernel: Kernel, map: BpfMap, ptr: BpfMap, need_defer: bool) -> None:
    """Drop the reference to an inner map that has been taken out of `map`.

    need_defer  whether programs may still run that have found it there
    """
    del map
    if kernel.has(Fix.DEFER_INNER_MAP_FREE) and need_defer:
        await WRITE_ONCE(ptr.free_after_mult_rcu_gp, True)
    await bpf_map_put(kernel, ptr)


async def bpf_map_fd_sys_lookup_elem(kernel: Kernel, ptr: BpfMap) -> int:
    """What user space gets for an inner map: its id."""
    del kernel
    id: int = await load(ptr.id)
    return id
