"""kernel/bpf/syscall.c, kernel/bpf/core.c (v5.10): programs: loading, references, their end

A program holds a reference to each of its maps until it is freed, which is after a grace period:
one of RCU, or of Tasks Trace RCU if it may sleep.

Not modelled: BTF, licences, statistics, limits on locked memory, look-up by id, binding maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, final

from kernel_model.bpf.anon_inodes import anon_inode_getfd
from kernel_model.bpf.attach_target import (
    dst_prog,
    get_dst_trampoline,
    put_dst_trampoline,
    target_facts,
)
from kernel_model.bpf.attr import BPF_PROG_LOAD
from kernel_model.bpf.core import BpfText
from kernel_model.bpf.disasm import listing
from kernel_model.bpf.insn import decode
from kernel_model.bpf.jit_prog import (
    __bpf_free_used_maps,
    bpf_check_tail_call,
    bpf_jit_free,
    bpf_prog_kallsyms_add,
    bpf_prog_kallsyms_del_all,
    bpf_prog_select_runtime,
    jit_subprogs,
    track_pokes,
)
from kernel_model.bpf.map import BpfMap
from kernel_model.bpf.map_refs import Idr, bpf_map_put
from kernel_model.bpf.prog_attr import BPF_F_SLEEPABLE, ProgLoadAttr
from kernel_model.bpf.prog_check import check_attr, copy_and_name
from kernel_model.bpf.syscall import bpf_command, sys_bpf
from kernel_model.bpf.verifier import Checked, bpf_check, bpf_text
from kernel_model.bpf.verifier_state import ProgFacts
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EBADF, EINVAL, ENOMEM
from kernel_model.linux.file import File, FileOperations, fdget, fput
from kernel_model.linux.refcount import atomic64_dec_and_test, atomic64_inc
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.spinlock import spin_lock_bh
from kernel_model.linux.task import syscall
from kernel_model.linux.workqueue import Work, WorkData, schedule_work
from kernel_model.rcu.tasks_trace import call_rcu_tasks_trace
from kernel_model.rcu.tree import call_rcu
from sim.cells import Cell, Struct, cell
from sim.macros import load, store
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.bpf.insn import Insn
    from kernel_model.bpf.jit import BpfImage
    from kernel_model.bpf.poke import BpfJitPokeTab
    from kernel_model.kernel import Kernel


@final
class BpfProgAux(Struct):
    """`struct bpf_prog_aux`: what is shared by all copies of a program.

    refcnt     descriptors, and where the program is attached
    id         0 once the last reference is gone
    used_maps  the maps of the program, a reference to each
    work       frees the program
    poke_tab   the direct tail calls, as many as `size_poke_tab`
    func       the functions of a program that has several, each a program with an aux of its own
    dst_prog, dst_trampoline  what it was loaded for, until it is attached; under dst_mutex
    for_prog, saved_dst  whether that is a program, and then its type and attach type
    """

    KIND = "bpf_prog_aux"

    refcnt: Cell[int] = cell(1)
    id: Cell[int] = cell(0, size=4)
    used_maps: Cell[tuple[BpfMap, ...]] = cell(())
    work: Cell[WorkData] = cell(None)
    poke_tab: Cell[BpfJitPokeTab | None] = cell(None)
    size_poke_tab: Cell[int] = cell(0, size=4)
    func: Cell[tuple[BpfProg, ...]] = cell(())
    dst_prog: Cell[BpfProg | None] = cell(None)
    dst_trampoline: Cell[Struct | None] = cell(None)
    dst_mutex: Cell[Thread | None] = cell(None)

    def __init__(
        self,
        name: str,
        attach_func_name: str,
        *,
        sleepable: bool,
        attach_btf_id: int = 0,
        for_prog: bool = False,
        func_info: bool = True,
        unreliable: frozenset[int] = frozenset(),
    ) -> None:
        self.name: Final = name
        self.attach_func_name: Final = attach_func_name
        self.attach_btf_id: Final = attach_btf_id
        self.for_prog: Final = for_prog
        self.sleepable: Final = sleepable
        self.func_info: Final = func_info
        self.unreliable: Final = unreliable
        self.saved_dst = (0, 0)


@final
class BpfProg(Struct):
    """`struct bpf_prog`.

    bpf_func  the image of its entry function
    text      what runs; set before others see the program
    """

    KIND = "bpf_prog"

    bpf_func: Cell[BpfImage | None] = cell(None)
    text: BpfText

    def __init__(self, aux: BpfProgAux, type: int, expected_attach_type: int = 0) -> None:
        self.aux: Final = aux
        self.type: Final = type
        self.expected_attach_type: Final = expected_attach_type

    def pointers(self) -> Iterator[Struct]:
        """Its other half, and its text."""
        yield self.aux
        if self.bpf_func.value is not None:
            yield self.bpf_func.value

    @property
    def facts(self) -> ProgFacts:
        """What the verifier asks about it."""
        aux = self.aux
        return ProgFacts(
            self.type,
            self.expected_attach_type,
            aux.attach_func_name,
            aux.sleepable,
            aux.func_info,
            attach_btf_id=aux.attach_btf_id,
            saved_dst=aux.saved_dst,
        )

    def listing(self) -> str:
        """The rewritten program as ``bpftool prog dump xlated`` shows it."""
        maps = self.aux.used_maps.value  # for who looks at a run; no step of it
        text = listing(self.text.insns, lambda index: f"id:{maps[index].id.value}")
        for imm, call in self.text.calls.items():
            text = text.replace(f"call unknown#{imm}\n", f"call {call.name}#{imm}\n")
        return text


@final
class ProgIds(Struct):
    """`prog_idr`, which keeps no program alive, and its lock."""

    KIND = "prog_idr"

    prog_idr: Cell[Idr] = cell(Idr(), weak=True)
    prog_idr_lock: Cell[Thread | None] = cell(None)


async def bpf_prog_alloc_id(kernel: Kernel, prog: BpfProg) -> None:
    ids = kernel.subsystem(ProgIds)
    async with spin_lock_bh(ids.prog_idr_lock):
        idr = await load(ids.prog_idr)
        await store(ids.prog_idr, idr.alloc_cyclic(prog))
        await store(prog.aux.id, idr.following)


async def bpf_prog_free_id(kernel: Kernel, prog: BpfProg) -> None:
    ids = kernel.subsystem(ProgIds)
    id = await load(prog.aux.id)
    if not id:
        return
    async with spin_lock_bh(ids.prog_idr_lock):
        idr = await load(ids.prog_idr)
        await store(ids.prog_idr, idr.remove(id))
        await store(prog.aux.id, 0)


# -- references ----------------------------------------------------------------------------------


async def bpf_prog_inc(prog: BpfProg) -> None:
    await atomic64_inc(prog.aux.refcnt)


@kernel_function
async def bpf_prog_put(kernel: Kernel, prog: BpfProg) -> None:
    if await atomic64_dec_and_test(prog.aux.refcnt):
        await bpf_prog_free_id(kernel, prog)
        await __bpf_prog_put_noref(kernel, prog, True)


@kernel_function
async def __bpf_prog_put_noref(kernel: Kernel, prog: BpfProg, deferred: bool) -> None:
    await bpf_prog_kallsyms_del_all(kernel, prog)
    if not deferred or kernel.has(Fix.PROG_FREE_NO_GP):
        await __bpf_prog_put_rcu(kernel, prog)
    elif prog.aux.sleepable and not kernel.has(Fix.SLEEPABLE_FREED_BY_RCU):
        await call_rcu_tasks_trace(kernel, __bpf_prog_put_rcu, kernel, prog)
    else:
        await call_rcu(kernel, __bpf_prog_put_rcu, kernel, prog)


@kernel_function
async def __bpf_prog_put_rcu(kernel: Kernel, prog: BpfProg) -> None:
    tgt_prog = await dst_prog(prog)
    if tgt_prog is not None:
        await bpf_prog_put(kernel, tgt_prog)
    await schedule_work(kernel, Work(prog.aux.work, bpf_prog_free_deferred, prog))


@kernel_function
async def bpf_prog_free_deferred(kernel: Kernel, prog: BpfProg) -> None:
    """A worker's part: nothing runs the program any more."""
    await __bpf_free_used_maps(kernel, prog.aux, await load(prog.aux.used_maps))
    await put_dst_trampoline(kernel, prog)
    for func in await load(prog.aux.func):
        await bpf_jit_free(kernel, func)
    await bpf_jit_free(kernel, prog)


async def bpf_prog_release(kernel: Kernel, filp: File) -> None:
    prog = filp.private_data
    assert isinstance(prog, BpfProg)
    await bpf_prog_put(kernel, prog)


bpf_prog_fops: Final = FileOperations("bpf-prog", bpf_prog_release)


async def bpf_prog_get(kernel: Kernel, ufd: int) -> BpfProg | int:
    """A new reference to the program of a descriptor, or -errno."""
    file = await fdget(kernel, ufd)
    if file is None:
        return -EBADF
    prog = file.private_data if file.f_op is bpf_prog_fops else None
    if isinstance(prog, BpfProg):
        await bpf_prog_inc(prog)
    await fput(kernel, file)
    return prog if isinstance(prog, BpfProg) else -EINVAL


# -- BPF_PROG_LOAD -------------------------------------------------------------------------------


@kernel_function
async def bpf_prog_load(kernel: Kernel, attr: ProgLoadAttr) -> int:
    error = await check_attr(kernel, attr)
    if error:
        return error
    prog = await bpf_prog_alloc(kernel, attr)
    if prog is None:
        return -ENOMEM
    error = await _take_target(kernel, prog, attr) or await copy_and_name(kernel, attr)
    if error:
        await __bpf_prog_put_noref(kernel, prog, False)
        return error
    tgt_prog = await dst_prog(prog)
    target = None if tgt_prog is None else await target_facts(tgt_prog)
    facts = prog.facts._replace(target=target)
    checked = await bpf_check(kernel, facts, attr.insns or ())
    if attr.log_buf is not None:
        attr.log_buf.extend(checked.verdict.log.encode())
    if checked.verdict.errno:
        await __bpf_prog_put_noref(kernel, prog, False)
        return -checked.verdict.errno
    error = await _make_text(kernel, prog, checked)
    if error:
        return error
    await bpf_prog_alloc_id(kernel, prog)
    await bpf_prog_kallsyms_add(kernel, prog)
    fd = await anon_inode_getfd(kernel, bpf_prog_fops, prog)
    if fd < 0:
        await bpf_prog_put(kernel, prog)
    return fd


async def bpf_prog_alloc(kernel: Kernel, attr: ProgLoadAttr) -> BpfProg | None:
    sleepable = bool(attr.prog_flags & BPF_F_SLEEPABLE)
    aux = await kzalloc(
        kernel,
        BpfProgAux,
        attr.prog_name,
        attr.attach_to,
        sleepable=sleepable,
        attach_btf_id=attr.attach_btf_id,
        for_prog=bool(attr.attach_prog_fd),
        func_info=attr.func_info,
        unreliable=attr.unreliable,
        gfp="GFP_USER",
    )
    if aux is None:
        return None
    prog = await kzalloc(kernel, BpfProg, aux, attr.prog_type, attr.expected_attach_type)
    if prog is None:
        await kfree(kernel, aux)
    return prog


async def _take_target(kernel: Kernel, prog: BpfProg, attr: ProgLoadAttr) -> int:
    """Take a reference to the program that this one is for: 0 or -errno."""
    if not attr.attach_prog_fd:
        return 0
    target = await bpf_prog_get(kernel, attr.attach_prog_fd)
    if isinstance(target, int):
        return target
    await store(prog.aux.dst_prog, target)
    return 0


async def _make_text(kernel: Kernel, prog: BpfProg, checked: Checked) -> int:
    """What follows once a program is known to be safe: 0, or -errno and nothing is left of it."""
    prog.text = bpf_text(prog.aux.name, prog.type, checked)
    verdict, maps = checked.verdict, checked.used_maps
    error = await get_dst_trampoline(kernel, prog)
    error = error or await track_pokes(kernel, prog.aux, verdict.pokes, maps)
    if not error and len(verdict.functions) > 1:
        error = await jit_subprogs(kernel, prog, verdict.functions, maps)
    if error:
        await release_maps(kernel, prog.aux, maps)
        await __bpf_prog_put_noref(kernel, prog, False)
        return error
    await store(prog.aux.used_maps, maps)
    error = await bpf_prog_select_runtime(kernel, prog, verdict.functions)
    error = error or await bpf_check_tail_call(kernel, prog, maps)
    if error:
        await __bpf_prog_put_noref(kernel, prog, bool(await load(prog.aux.func)))
    return error


async def release_maps(kernel: Kernel, aux: BpfProgAux, maps: tuple[BpfMap, ...]) -> None:
    """The verifier gives up the maps of a program that is not to be."""
    if kernel.has(Fix.UNTRACK_ON_ERROR):
        await __bpf_free_used_maps(kernel, aux, maps)
        return
    for map in maps:
        await bpf_map_put(kernel, map)


bpf_command(BPF_PROG_LOAD, ProgLoadAttr, bpf_prog_load)

# -- user space ----------------------------------------------------------------------------------


async def bpf_load_program(
    kernel: Kernel,
    prog_type: int,
    insns: tuple[Insn, ...] | bytes,
    *,
    name: str = "",
    flags: int = 0,
    expected_attach_type: int = 0,
    attach_to: str = "",
    attach_prog_fd: int = 0,
    attach_btf_id: int = 0,
    log_buf: bytearray | None = None,
) -> int:
    """Load a program from user mode, as libbpf does: a descriptor or -errno.

    insns      instructions, or their encoding as an array of `struct bpf_insn`
    attach_to  the kernel function that a TRACING or LSM program is for
    attach_prog_fd, attach_btf_id  a program and the number of its function (the first is 1)
    log_buf    gets what the verifier has to say: the reason of a refusal
    """
    attr = ProgLoadAttr(
        prog_type=prog_type,
        insns=decode(insns) if isinstance(insns, bytes) else insns,
        prog_name=name,
        prog_flags=flags,
        expected_attach_type=expected_attach_type,
        attach_to=attach_to,
        attach_prog_fd=attach_prog_fd,
        attach_btf_id=attach_btf_id,
        log_buf=log_buf,
    )
    async with syscall(kernel, "bpf"):
        return await sys_bpf(kernel, BPF_PROG_LOAD, attr)
