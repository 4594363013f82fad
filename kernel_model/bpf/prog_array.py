"""kernel/bpf/arraymap.c (v5.10): arrays of programs

Updates and deletes patch the direct tail calls of the programs that are tracked, under the array's
poke_mutex. The owner (which type of program the array takes) is under no lock, as in v5.10.

Not modelled: batches; showing what is in the array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from kernel_model.bpf.arraymap import BpfArray, array_map_alloc, array_map_get_next_key
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY, MapCreateAttr
from kernel_model.bpf.fd_arraymap import (
    __fd_array_map_delete_elem,
    fd_array_map_alloc_check,
    fd_array_map_delete_elem,
    fd_array_map_free,
)
from kernel_model.bpf.map import MapOps
from kernel_model.bpf.map_create import bpf_map_type
from kernel_model.bpf.map_refs import bpf_map_inc, bpf_map_put
from kernel_model.bpf.poke import __bpf_arch_text_poke, bpf_arch_text_poke, jump_to, poke_null
from kernel_model.bpf.prog import bpf_prog_get, bpf_prog_put
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EINVAL, ENOMEM, EOPNOTSUPP
from kernel_model.linux.mutex import mutex
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.spinlock import spin_lock
from kernel_model.linux.task import cond_resched
from kernel_model.linux.workqueue import Work, WorkData, schedule_work
from kernel_model.rcu.tasks_trace import synchronize_rcu_tasks_trace
from kernel_model.rcu.tree import synchronize_rcu
from kernel_model.x86.text import NOP5, POKE_SIZE, Site, Text
from sim.cells import Cell, Struct, cell
from sim.macros import READ_ONCE, load, note, store
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.bpf.poke import BpfJitPokeTab
    from kernel_model.bpf.prog import BpfProg, BpfProgAux
    from kernel_model.kernel import Kernel
    from kernel_model.linux.file import File


@final
class ProgPokeElem(Struct):
    """`struct prog_poke_elem`: a program, by its aux, that has direct tail calls into the array."""

    KIND = "prog_poke_elem"

    aux: Cell[BpfProgAux] = cell(None)  # type: ignore[arg-type]  # set in __init__

    def __init__(self, aux: BpfProgAux) -> None:
        self.initial(self.aux, aux)


@final
class BpfArrayAux(Struct):
    """`struct bpf_array_aux`.

    type, jited  the owner; 0: none yet
    owner_lock   of the owner (with 54713c85f536)
    poke_progs   the programs to patch; changes under poke_mutex
    work         clears the array
    """

    KIND = "bpf_array_aux"

    type: Cell[int] = cell(0, legal_races="the owner of a prog array is under no lock in v5.10")
    jited: Cell[bool] = cell(False, legal_races="the owner of a prog array is under no lock")
    poke_progs: Cell[tuple[ProgPokeElem, ...]] = cell(())
    poke_mutex: Cell[Thread | None] = cell(None)
    owner_lock: Cell[Thread | None] = cell(None)
    work: Cell[WorkData] = cell(None)


# -- creation and end ----------------------------------------------------------------------------


@kernel_function
async def prog_array_map_alloc(kernel: Kernel, attr: MapCreateAttr) -> BpfArray | int:
    aux = await kzalloc(kernel, BpfArrayAux)
    if aux is None:
        return -ENOMEM
    map = await array_map_alloc(kernel, attr)
    if isinstance(map, int):
        await kfree(kernel, aux)
        return map
    map.aux = aux
    return map


@kernel_function
async def prog_array_map_free(kernel: Kernel, array: BpfArray) -> None:
    for elem in await load(array.aux.poke_progs):
        await kfree(kernel, elem)
    await kfree(kernel, array.aux)
    await fd_array_map_free(kernel, array)


@kernel_function
async def prog_array_map_clear(kernel: Kernel, array: BpfArray) -> None:
    """User space has no reference any more: nobody may find a program in the array."""
    await bpf_map_inc(array)
    await schedule_work(kernel, Work(array.aux.work, prog_array_map_clear_deferred, array))


@kernel_function
async def prog_array_map_clear_deferred(kernel: Kernel, array: BpfArray) -> None:
    for i in range(array.max_entries):
        await __fd_array_map_delete_elem(kernel, array, i.to_bytes(4, "little"), need_defer=True)
        if kernel.has(Fix.CLEAR_RESCHED):
            await cond_resched()
    await bpf_map_put(kernel, array)


async def prog_array_map_release_uref(kernel: Kernel, array: BpfArray) -> None:
    if kernel.has(Fix.UREF):
        await prog_array_map_clear(kernel, array)


async def prog_array_map_release(kernel: Kernel, array: BpfArray, filp: File) -> None:
    """Before references of user space were counted, each descriptor that was closed cleared."""
    del filp
    if not kernel.has(Fix.UREF):
        await prog_array_map_clear(kernel, array)


# -- what is in the slots ------------------------------------------------------------------------


@kernel_function
async def bpf_prog_array_compatible(kernel: Kernel, array: BpfArray, prog: BpfProg) -> bool:
    if kernel.has(Fix.NO_OWNER_CHECK):
        return True
    if not kernel.has(Fix.OWNER_LOCK):
        return await _compatible(array.aux, prog)
    async with spin_lock(array.aux.owner_lock):
        return await _compatible(array.aux, prog)


async def _compatible(aux: BpfArrayAux, prog: BpfProg) -> bool:
    type = await load(aux.type)
    if not type:
        await store(aux.type, prog.type)
        await store(aux.jited, True)
        return True
    return bool(type == prog.type and await load(aux.jited))


async def prog_fd_array_get_ptr(
    kernel: Kernel, array: BpfArray, map_file: File, fd: int
) -> BpfProg | int:
    del map_file
    prog = await bpf_prog_get(kernel, fd)
    if isinstance(prog, int):
        return prog
    if not await bpf_prog_array_compatible(kernel, array, prog):
        await bpf_prog_put(kernel, prog)
        return -EINVAL
    return prog


async def prog_fd_array_put_ptr(
    kernel: Kernel, array: BpfArray, ptr: BpfProg, need_defer: bool
) -> None:
    del array, need_defer
    await bpf_prog_put(kernel, ptr)


async def prog_fd_array_sys_lookup_elem(kernel: Kernel, ptr: BpfProg) -> int:
    del kernel
    id: int = await load(ptr.aux.id)
    return id


async def fd_array_map_lookup_elem(kernel: Kernel, array: BpfArray, key: bytes) -> int:
    """No program gets at a program."""
    del kernel, array, key
    return -EOPNOTSUPP


# -- tracking ------------------------------------------------------------------------------------


@kernel_function
async def prog_array_map_poke_track(kernel: Kernel, array: BpfArray, aux: BpfProgAux) -> int:
    async with mutex(array.aux.poke_mutex):
        progs = await load(array.aux.poke_progs)
        for elem in progs:
            if await load(elem.aux) is aux:
                return 0
        made = await kzalloc(kernel, ProgPokeElem, aux)
        if made is None:
            return -ENOMEM
        await store(array.aux.poke_progs, (*progs, made))
    return 0


@kernel_function
async def prog_array_map_poke_untrack(kernel: Kernel, array: BpfArray, aux: BpfProgAux) -> None:
    async with mutex(array.aux.poke_mutex):
        progs = await load(array.aux.poke_progs)
        for elem in progs:
            if await load(elem.aux) is aux:
                await store(array.aux.poke_progs, tuple(e for e in progs if e is not elem))
                await kfree(kernel, elem)
                break


# -- patching ------------------------------------------------------------------------------------


@kernel_function
async def prog_array_map_poke_run(
    kernel: Kernel, array: BpfArray, key: int, old: BpfProg | None, new: BpfProg | None
) -> None:
    """Patch every direct tail call of the slot; the caller holds poke_mutex."""
    for elem in await load(array.aux.poke_progs):
        aux = await load(elem.aux)
        size = await load(aux.size_poke_tab)
        tab = await load(aux.poke_tab) if size else None
        for i in range(size):
            assert tab is not None
            await _poke(kernel, array, key, (tab, i), old, new)


async def _poke(
    kernel: Kernel,
    array: BpfArray,
    key: int,
    desc: tuple[BpfJitPokeTab, int],
    old: BpfProg | None,
    new: BpfProg | None,
) -> None:
    tab, i = desc
    if not await READ_ONCE(tab.tailcall_target_stable[i]):
        return
    call = await load(tab.tail_call[i])
    if call.map is not array or call.key != key:
        return
    old_to = NOP5 if old is None else jump_to(await load(old.bpf_func))
    new_to = NOP5 if new is None else jump_to(await load(new.bpf_func))
    sites = tab.sites(i, call.poke)
    if sites is None:  # whose addresses are NULL, which is in no symbol
        if kernel.has(Fix.POKE_WITHOUT_KSYM):
            await poke_null()
        return
    bypass, target = sites
    if bypass is None:
        await _poke_one(kernel, target, old_to, new_to)
        return
    skip = Text("jmp", target.ip + POKE_SIZE)
    if new is not None:
        swapped = kernel.has(Fix.INSTALL_SWAPPED) and old is None
        if swapped:
            await _poke_one(kernel, bypass, skip, NOP5)
        await _poke_one(kernel, target, old_to, new_to)
        if old is None and not swapped:
            await _poke_one(kernel, bypass, skip, NOP5)
        return
    changed = await _poke_one(kernel, bypass, skip if old is None else NOP5, skip)
    if changed == 0 and not kernel.has(Fix.REMOVE_NO_GP):
        wait = kernel.has(Fix.REMOVE_TRACE_GP)
        await (synchronize_rcu_tasks_trace(kernel) if wait else synchronize_rcu(kernel))
    await _poke_one(kernel, target, old_to, NOP5)


async def _poke_one(kernel: Kernel, site: Site, old: Text, new: Text) -> int:
    if kernel.has(Fix.POKE_WITHOUT_KSYM):
        error = await __bpf_arch_text_poke(kernel, site, old, new)
        fatal = error < 0
    else:
        error = await bpf_arch_text_poke(kernel, site, old, new)
        fatal = error < 0 and error != -EINVAL
    if fatal:
        await note("BUG", f"prog_array_map_poke_run: {site.name} is not {old}: {error}")
    return error


prog_array_map_ops: Final[MapOps[BpfArray]] = MapOps(
    map_type=BPF_MAP_TYPE_PROG_ARRAY,
    map_alloc_check=fd_array_map_alloc_check,
    map_alloc=prog_array_map_alloc,
    map_free=prog_array_map_free,
    map_get_next_key=array_map_get_next_key,
    map_lookup_elem=fd_array_map_lookup_elem,
    map_delete_elem=fd_array_map_delete_elem,
    map_fd_get_ptr=prog_fd_array_get_ptr,
    map_fd_put_ptr=prog_fd_array_put_ptr,
    map_fd_sys_lookup_elem=prog_fd_array_sys_lookup_elem,
    map_release=prog_array_map_release,
    map_release_uref=prog_array_map_release_uref,
    map_poke_track=prog_array_map_poke_track,
    map_poke_untrack=prog_array_map_poke_untrack,
    map_poke_run=prog_array_map_poke_run,
)

bpf_map_type(prog_array_map_ops)
