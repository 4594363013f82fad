"""kernel/bpf/syscall.c (v5.10): references to maps, their ids, and their end

Not modelled: running out of ids, pinning, offloaded maps, memory accounting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast, final

from kernel_model.bpf.anon_inodes import anon_inode_getfd
from kernel_model.bpf.attr import BPF_F_RDONLY, BPF_F_WRONLY, GetIdAttr
from kernel_model.bpf.capability import bpf_capable
from kernel_model.bpf.map import BpfMap
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EBADF, EINVAL, ENOENT, EPERM
from kernel_model.linux.file import FMODE_BOTH, FMODE_READ, FMODE_WRITE, File, FileOperations, fput
from kernel_model.linux.refcount import (
    atomic64_dec_and_test,
    atomic64_inc,
    atomic64_inc_not_zero,
)
from kernel_model.linux.spinlock import spin_lock_bh, spin_lock_irqsave
from kernel_model.linux.workqueue import Work, schedule_work
from kernel_model.rcu.tasks_trace import call_rcu_tasks_trace, rcu_trace_implies_rcu_gp
from kernel_model.rcu.tree import call_rcu
from sim import ops
from sim.cells import Cell, Struct, cell
from sim.macros import READ_ONCE, load, rmw, store
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


class Idr(NamedTuple):
    """A table of ids, which are given out in a cycle.

    following  the next id
    entries    (id, object), in order of ids
    """

    following: int = 1
    entries: tuple[tuple[int, Struct], ...] = ()

    def alloc_cyclic(self, ptr: Struct) -> Idr:
        """The table with an object under the next id."""
        return Idr(self.following + 1, (*self.entries, (self.following, ptr)))

    def remove(self, id: int) -> Idr:
        """The table without an id."""
        return Idr(self.following, tuple(entry for entry in self.entries if entry[0] != id))


@final
class MapIds(Struct):
    """`map_idr`, which keeps no map alive, and its lock."""

    KIND = "map_idr"

    map_idr: Cell[Idr] = cell(Idr(), weak=True)
    map_idr_lock: Cell[Thread | None] = cell(None)


async def bpf_map_alloc_id(kernel: Kernel, map: BpfMap) -> None:
    ids = kernel.subsystem(MapIds)
    async with spin_lock_bh(ids.map_idr_lock):
        idr = await load(ids.map_idr)
        await store(ids.map_idr, idr.alloc_cyclic(map))
        await store(map.id, idr.following)


async def bpf_map_free_id(kernel: Kernel, map: BpfMap) -> None:
    ids = kernel.subsystem(MapIds)
    id = await load(map.id)
    if not id:
        return
    async with spin_lock_irqsave(ids.map_idr_lock):
        idr = await load(ids.map_idr)
        await store(ids.map_idr, idr.remove(id))
        await store(map.id, 0)


async def __bpf_map_inc_not_zero(map: BpfMap) -> bool:
    """A reference of user space to a map that is not on its way out."""
    if not await atomic64_inc_not_zero(map.refcnt):
        return False
    await rmw(map.usercnt, "add", 1, "bpf_map_inc_with_uref", ops.ONCE)  # may come back from 0
    return True


@kernel_function
async def bpf_map_get_fd_by_id(kernel: Kernel, attr: GetIdAttr) -> int:
    """A new descriptor of the map with that id, or -errno."""
    if attr.unused_tail or attr.open_flags & ~(BPF_F_RDONLY | BPF_F_WRONLY):
        return -EINVAL
    if not bpf_capable(kernel):
        return -EPERM
    if attr.open_flags & BPF_F_RDONLY and attr.open_flags & BPF_F_WRONLY:
        return -EINVAL
    f_mode = FMODE_BOTH
    if attr.open_flags:
        f_mode = FMODE_READ if attr.open_flags & BPF_F_RDONLY else FMODE_WRITE
    ids = kernel.subsystem(MapIds)
    async with spin_lock_bh(ids.map_idr_lock):
        idr = await load(ids.map_idr)
        map = next((found for id, found in idr.entries if id == attr.id), None)
        if map is None or not await __bpf_map_inc_not_zero(cast("BpfMap", map)):
            return -ENOENT
    assert isinstance(map, BpfMap)
    fd = await bpf_map_new_fd(kernel, map, f_mode)
    if fd < 0:
        await bpf_map_put_with_uref(kernel, map)
    return fd


# -- descriptors ---------------------------------------------------------------------------------


async def bpf_map_release(kernel: Kernel, filp: File) -> None:
    map = filp.private_data
    assert isinstance(map, BpfMap)
    if map.ops.map_release is not None:
        await map.ops.map_release(kernel, map, filp)
    await bpf_map_put_with_uref(kernel, map)


bpf_map_fops: Final = FileOperations("bpf-map", bpf_map_release)


async def bpf_map_new_fd(kernel: Kernel, map: BpfMap, f_mode: int) -> int:
    return await anon_inode_getfd(kernel, bpf_map_fops, map, f_mode)


async def __bpf_map_get(kernel: Kernel, file: File | None) -> BpfMap | int:
    """The map of a file that fdget() found, or -errno and the reference to the file is dropped."""
    if file is None:
        return -EBADF
    if file.f_op is not bpf_map_fops:
        await fput(kernel, file)
        return -EINVAL
    map = file.private_data
    assert isinstance(map, BpfMap)
    return map


# -- counting ------------------------------------------------------------------------------------


async def bpf_map_inc(map: BpfMap) -> None:
    await atomic64_inc(map.refcnt)


async def bpf_map_put_uref(kernel: Kernel, map: BpfMap) -> None:
    if await atomic64_dec_and_test(map.usercnt):
        if map.ops.map_release_uref is not None:
            await map.ops.map_release_uref(kernel, map)


@kernel_function
async def bpf_map_put(kernel: Kernel, map: BpfMap) -> None:
    if not await atomic64_dec_and_test(map.refcnt):
        return
    await bpf_map_free_id(kernel, map)
    if not kernel.has(Fix.DEFER_INNER_MAP_FREE):
        await bpf_map_free_in_work(kernel, map)
    elif not await READ_ONCE(map.free_after_mult_rcu_gp):
        await bpf_map_free_in_work(kernel, map)
    elif kernel.has(Fix.INNER_FREE_RCU_ONLY):
        await call_rcu(kernel, bpf_map_free_rcu_gp, kernel, map)
    else:
        await call_rcu_tasks_trace(kernel, bpf_map_free_mult_rcu_gp, kernel, map)


@kernel_function
async def bpf_map_put_with_uref(kernel: Kernel, map: BpfMap) -> None:
    await bpf_map_put_uref(kernel, map)
    await bpf_map_put(kernel, map)


# -- the end -------------------------------------------------------------------------------------


@kernel_function
async def bpf_map_free_mult_rcu_gp(kernel: Kernel, map: BpfMap) -> None:
    """Called back when programs that may sleep are done with the map."""
    if rcu_trace_implies_rcu_gp(kernel) or kernel.has(Fix.INNER_FREE_TRACE_ONLY):
        await bpf_map_free_rcu_gp(kernel, map)
    else:
        await call_rcu(kernel, bpf_map_free_rcu_gp, kernel, map)


@kernel_function
async def bpf_map_free_rcu_gp(kernel: Kernel, map: BpfMap) -> None:
    """Called back when all programs are done with the map."""
    await bpf_map_free_in_work(kernel, map)


@kernel_function
async def bpf_map_free_in_work(kernel: Kernel, map: BpfMap) -> None:
    """Freeing a map may sleep, dropping a reference may not."""
    await schedule_work(kernel, Work(map.work, bpf_map_free_deferred, map))


@kernel_function
async def bpf_map_free_deferred(kernel: Kernel, map: BpfMap) -> None:
    """A worker's part: nobody can find the map any more, except programs that already have."""
    await map.ops.map_free(kernel, map)
