"""kernel/trace/bpf_trace.c, net/sched/cls_bpf.c, kernel/bpf/trampoline.c (v5.10): entry points

Three places, one for each way in which programs are entered:

- a raw tracepoint: preemption off, inside rcu_read_lock()
- a classifier: bottom halves off, inside rcu_read_lock()
- the bare entry of programs that may sleep: inside rcu_read_lock_trace(), preemptible

A workload makes the place (`tracepoint`, `classifier`, `sleepable_hook`) before it starts its
tasks. Attaching takes a reference to the program, and detaching drops it. Tasks in the kernel then
come by: `trace`, `sch_handle_ingress`, `call_sleepable`.

Not modelled: the array of functions of a tracepoint is a value, not memory; links other than as
files; classifiers with more than one filter, packets (a context is bytes); trampolines and what
else they do around programs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from kernel_model.bpf.anon_inodes import anon_inode_getfd
from kernel_model.bpf.attr import BpfAttr
from kernel_model.bpf.core import bpf_prog_run
from kernel_model.bpf.prog import BpfProg, bpf_prog_get, bpf_prog_put
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SCHED_CLS,
    BPF_PROG_TYPE_TRACING,
)
from kernel_model.bpf.syscall import bpf_command, sys_bpf
from kernel_model.bpf.tracing_link import bpf_tracing_prog_attach
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EBUSY, EINVAL, ENOENT, ENOMEM
from kernel_model.linux.file import File, FileOperations
from kernel_model.linux.mutex import mutex
from kernel_model.linux.preempt import local_bh_disable, preempt_disable
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.task import Guard, context, might_fault, syscall
from kernel_model.linux.workqueue import Work, WorkData, schedule_work
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace
from kernel_model.rcu.tree import (
    call_rcu,
    rcu_assign_pointer,
    rcu_dereference,
    rcu_dereference_raw,
    rcu_read_lock,
)
from sim.cells import Cell, Struct, cell
from sim.macros import cmpxchg, load, note, xchg
from sim.ops import Op
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel

BPF_RAW_TRACEPOINT_OPEN: Final = 17
TC_ACT_UNSPEC: Final = -1
_U64: Final = (1 << 64) - 1


def u64s(*values: int) -> bytes:
    """Numbers and pointers as a context of 8 bytes each."""
    return struct.pack(f"<{len(values)}Q", *[value & _U64 for value in values])


async def bpf_prog_get_type(kernel: Kernel, ufd: int, type: int) -> BpfProg | int:
    """A new reference to the program of a descriptor, if it is of that type, or -errno."""
    prog = await bpf_prog_get(kernel, ufd)
    if isinstance(prog, int) or prog.type == type:
        return prog
    await bpf_prog_put(kernel, prog)
    return -EINVAL


# -- raw tracepoints -----------------------------------------------------------------------------


@final
class Tracepoint(Struct):
    """`struct tracepoint`.

    funcs  the programs attached
    """

    KIND = "tracepoint"

    funcs: Cell[tuple[BpfProg, ...]] = cell(())

    def __init__(self, name: str) -> None:
        self.name: Final = name


@final
class Tracepoints(Struct):
    """All of them by name, and the lock of whoever changes them."""

    KIND = "tracepoints"

    tracepoints_mutex: Cell[Thread | None] = cell(None)

    def __init__(self) -> None:
        self.by_name: Final[dict[str, Tracepoint]] = {}


@final
class BpfRawTpLink(Struct):
    """`struct bpf_raw_tp_link`: a program attached to a tracepoint, for as long as it is open."""

    KIND = "bpf_raw_tp_link"

    def __init__(self, tp: Tracepoint, prog: BpfProg) -> None:
        self.tp: Final = tp
        self.prog: Final = prog

    def pointers(self) -> Iterator[Struct]:
        """Its program."""
        yield self.prog


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTracepointAttr(BpfAttr):
    """BPF_RAW_TRACEPOINT_OPEN."""

    name: str
    prog_fd: int


def tracepoint(kernel: Kernel, name: str) -> Tracepoint:
    """Add a tracepoint to the kernel."""
    made = kernel.memory.static(Tracepoint, name)
    kernel.subsystem(Tracepoints).by_name[name] = made
    return made


@kernel_function
async def trace(kernel: Kernel, tp: Tracepoint, *args: int) -> list[int]:
    """The running task comes by: what each program returns (which the kernel ignores)."""
    async with preempt_disable():
        funcs = await rcu_dereference_raw(tp.funcs)
        return [await bpf_trace_run(kernel, prog, *args) for prog in funcs]


@kernel_function
async def bpf_trace_run(kernel: Kernel, prog: BpfProg, *args: int) -> int:
    if not context().atomic:
        await note("WARN", "assuming atomic context")
    async with rcu_read_lock():
        return await bpf_prog_run(kernel, prog, u64s(*args), "bpf_trace_run")


@kernel_function
async def bpf_raw_tracepoint_open(kernel: Kernel, attr: RawTracepointAttr) -> int:
    if attr.unused_tail:
        return -EINVAL
    prog = await bpf_prog_get(kernel, attr.prog_fd)
    if isinstance(prog, int):
        return prog
    fd = await _open_link(kernel, attr.name, prog)
    if fd < 0:
        await bpf_prog_put(kernel, prog)
    return fd


async def _open_link(kernel: Kernel, name: str, prog: BpfProg) -> int:
    if prog.type in (BPF_PROG_TYPE_TRACING, BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_EXT):
        return -EINVAL if name else await bpf_tracing_prog_attach(kernel, prog, 0, 0)
    if prog.type != BPF_PROG_TYPE_RAW_TRACEPOINT:
        return -EINVAL
    tp = kernel.subsystem(Tracepoints).by_name.get(name)
    if tp is None:
        return -ENOENT
    link = await kzalloc(kernel, BpfRawTpLink, tp, prog, gfp="GFP_USER")
    if link is None:
        return -ENOMEM
    await _change_funcs(kernel, tp, add=prog)
    fd = await anon_inode_getfd(kernel, bpf_link_fops, link)
    if fd < 0:
        await _change_funcs(kernel, tp, remove=prog)
        await kfree(kernel, link)
    return fd


async def _change_funcs(
    kernel: Kernel, tp: Tracepoint, *, add: BpfProg | None = None, remove: BpfProg | None = None
) -> None:
    """tracepoint_probe_register(), tracepoint_probe_unregister()"""
    async with mutex(kernel.subsystem(Tracepoints).tracepoints_mutex):
        funcs = list(await load(tp.funcs))
        if add is not None:
            funcs.append(add)
        if remove is not None:
            funcs.remove(remove)
        await rcu_assign_pointer(tp.funcs, tuple(funcs))


async def bpf_link_release(kernel: Kernel, filp: File) -> None:
    link = filp.private_data
    assert isinstance(link, BpfRawTpLink)
    await _change_funcs(kernel, link.tp, remove=link.prog)
    await bpf_prog_put(kernel, link.prog)
    await kfree(kernel, link)


bpf_link_fops: Final = FileOperations("bpf_link", bpf_link_release)
bpf_command(BPF_RAW_TRACEPOINT_OPEN, RawTracepointAttr, bpf_raw_tracepoint_open)


async def bpf_raw_tracepoint_attach(kernel: Kernel, name: str, prog_fd: int) -> int:
    """Attach from user mode, as libbpf does: a descriptor to close for detaching, or -errno.

    name  of the tracepoint; empty for programs that know the function they are for
    """
    async with syscall(kernel, "bpf"):
        attr = RawTracepointAttr(name=name, prog_fd=prog_fd)
        return await sys_bpf(kernel, BPF_RAW_TRACEPOINT_OPEN, attr)


# -- classifiers ---------------------------------------------------------------------------------


@final
class ClsBpfProg(Struct):
    """`struct cls_bpf_prog`: a filter."""

    KIND = "cls_bpf_prog"

    filter: Cell[BpfProg | None] = cell(None)
    rwork: Cell[WorkData] = cell(None)

    def __init__(self, filter: BpfProg) -> None:
        self.initial(self.filter, filter)


@final
class ClsBpfHead(Struct):
    """`struct cls_bpf_head`, with at most one filter."""

    KIND = "cls_bpf_head"

    plist: Cell[ClsBpfProg | None] = cell(None)


@final
class Rtnl(Struct):
    """The lock of whoever changes the network's configuration."""

    KIND = "rtnl"

    rtnl_mutex: Cell[Thread | None] = cell(None)


def classifier(kernel: Kernel) -> ClsBpfHead:
    """Add a classifier to a network device."""
    kernel.subsystem(Rtnl)
    return kernel.memory.static(ClsBpfHead)


@kernel_function
async def sch_handle_ingress(kernel: Kernel, head: ClsBpfHead, skb: bytes | bytearray) -> int:
    """A packet comes by: what the filter returns, or TC_ACT_UNSPEC if there is none."""
    async with local_bh_disable():
        return await cls_bpf_classify(kernel, head, skb)


@kernel_function
async def cls_bpf_classify(kernel: Kernel, head: ClsBpfHead, skb: bytes | bytearray) -> int:
    async with rcu_read_lock():
        prog = await rcu_dereference(head.plist, "rcu_bh")
        filter = None if prog is None else await load(prog.filter)
        return TC_ACT_UNSPEC if filter is None else await bpf_prog_run(kernel, filter, skb)


@kernel_function
async def cls_bpf_change(kernel: Kernel, head: ClsBpfHead, bpf_fd: int) -> int:
    """Put the program in the place of the filter there is: 0 or -errno."""
    async with mutex(kernel.subsystem(Rtnl).rtnl_mutex):
        fp = await bpf_prog_get_type(kernel, bpf_fd, BPF_PROG_TYPE_SCHED_CLS)
        if isinstance(fp, int):
            return fp
        prog = await kzalloc(kernel, ClsBpfProg, fp)
        if prog is None:
            await bpf_prog_put(kernel, fp)
            return -ENOMEM
        await _replace_filter(kernel, head, prog)
        return 0


@kernel_function
async def cls_bpf_delete(kernel: Kernel, head: ClsBpfHead) -> int:
    """Remove the filter: 0 or -errno."""
    async with mutex(kernel.subsystem(Rtnl).rtnl_mutex):
        return 0 if await _replace_filter(kernel, head, None) else -ENOENT


async def _replace_filter(kernel: Kernel, head: ClsBpfHead, prog: ClsBpfProg | None) -> bool:
    """Whether there was a filter, which a worker frees after a grace period."""
    oldprog = await load(head.plist)
    await rcu_assign_pointer(head.plist, prog)
    if oldprog is None:
        return False
    await call_rcu(kernel, rcu_work_rcufn, kernel, oldprog)
    return True


@kernel_function
async def rcu_work_rcufn(kernel: Kernel, prog: ClsBpfProg) -> None:
    await schedule_work(kernel, Work(prog.rwork, cls_bpf_delete_prog_work, prog))


@kernel_function
async def cls_bpf_delete_prog_work(kernel: Kernel, prog: ClsBpfProg) -> None:
    async with mutex(kernel.subsystem(Rtnl).rtnl_mutex):
        filter = await load(prog.filter)
        assert filter is not None
        await bpf_prog_put(kernel, filter)
        await kfree(kernel, prog)


# -- programs that may sleep ---------------------------------------------------------------------


@final
class __bpf_prog_enter_sleepable(Guard):
    """Around a program that may sleep; the way out is __bpf_prog_exit_sleepable()."""

    def enter(self) -> Iterator[Op[None]]:
        yield from rcu_read_lock_trace().enter()
        yield might_fault()

    def leave(self) -> Iterator[Op[None]]:
        return rcu_read_lock_trace().leave()


@final
class SleepableHook(Struct):
    """A kernel function that programs can be attached to which may sleep.

    prog  the one that is
    """

    KIND = "sleepable_hook"

    prog: Cell[BpfProg | None] = cell(None)

    def __init__(self, function: str) -> None:
        self.function: Final = function


def sleepable_hook(kernel: Kernel, function: str) -> SleepableHook:
    """Add a place for programs that were loaded with ``attach_to=function``."""
    return kernel.memory.static(SleepableHook, function)


@kernel_function
async def call_sleepable(kernel: Kernel, hook: SleepableHook, *args: int) -> int | None:
    """The running task comes by: what the program returns, None if there is none."""
    async with __bpf_prog_enter_sleepable():
        prog = await rcu_dereference(hook.prog, "rcu_tasks_trace")
        return None if prog is None else await bpf_prog_run(kernel, prog, u64s(*args))


@kernel_function
async def attach_sleepable(kernel: Kernel, hook: SleepableHook, prog_fd: int) -> int:
    """0 or -errno."""
    prog = await bpf_prog_get_type(kernel, prog_fd, BPF_PROG_TYPE_TRACING)
    if isinstance(prog, int):
        return prog
    error = 0
    if not prog.aux.sleepable or prog.aux.attach_func_name != hook.function:
        error = -EINVAL
    elif await cmpxchg(hook.prog, None, prog) is not None:
        error = -EBUSY
    if error:
        await bpf_prog_put(kernel, prog)
    return error


@kernel_function
async def detach_sleepable(kernel: Kernel, hook: SleepableHook) -> int:
    """0 or -errno."""
    prog = await xchg(hook.prog, None)
    if prog is None:
        return -ENOENT
    await bpf_prog_put(kernel, prog)
    return 0
