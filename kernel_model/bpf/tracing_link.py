"""kernel/bpf/syscall.c, bpf_tracing_prog_attach (v5.10): programs attached to functions

A program of a tracing type takes a reference to the trampoline of its function when it is loaded,
and one to the program that the function is of; attaching gives them to the link. An extension can
be attached again, to another program like the first one. The end of a link takes the program out of
the trampoline, drops the trampoline, the target, and then the program.

Not modelled: look-up of links by id; iterators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from kernel_model.bpf.anon_inodes import anon_inode_prime, put_unused_fd
from kernel_model.bpf.attach_target import (
    bpf_trampoline_compute_key,
    check_new_target,
    dst_prog,
    target_function,
)
from kernel_model.bpf.attr import BpfAttr
from kernel_model.bpf.prog import BpfProg, bpf_prog_get, bpf_prog_put
from kernel_model.bpf.prog_attr import (
    BPF_LSM_MAC,
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.bpf.syscall import bpf_command, sys_bpf
from kernel_model.bpf.trampoline import (
    BpfTrampoline,
    TrampolineKey,
    bpf_trampoline_get,
    bpf_trampoline_link_prog,
    bpf_trampoline_put,
    bpf_trampoline_unlink_prog,
)
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import EINVAL, ENOENT, ENOMEM
from kernel_model.linux.file import File, FileOperations, fd_install
from kernel_model.linux.mutex import mutex
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.linux.task import syscall
from sim.cells import Struct
from sim.macros import load, note, store

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel

BPF_LINK_CREATE: Final = 28

_ATTACH_TYPES: Final = {
    BPF_PROG_TYPE_TRACING: (BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_MODIFY_RETURN),
    BPF_PROG_TYPE_EXT: (0,),
    BPF_PROG_TYPE_LSM: (BPF_LSM_MAC,),
}


@final
class BpfTracingLink(Struct):
    """`struct bpf_tracing_link`.

    tgt_prog  the program that the function is of; None: it is the kernel's
    """

    KIND = "bpf_tracing_link"

    def __init__(self, prog: BpfProg) -> None:
        self.prog: Final = prog
        self.trampoline: BpfTrampoline | None = None
        self.tgt_prog: BpfProg | None = None

    def pointers(self) -> Iterator[Struct]:
        """What it keeps."""
        yield self.prog
        if self.trampoline is not None:
            yield self.trampoline
        if self.tgt_prog is not None:
            yield self.tgt_prog


@kernel_function
async def bpf_tracing_prog_attach(
    kernel: Kernel, prog: BpfProg, tgt_prog_fd: int, btf_id: int
) -> int:
    """A descriptor of the link, or -errno; the caller's reference goes to the link.

    tgt_prog_fd, btf_id  another target than that of loading; 0: that one
    """
    if prog.expected_attach_type not in _ATTACH_TYPES.get(prog.type, ()):
        return -EINVAL
    if bool(tgt_prog_fd) != bool(btf_id):
        return -EINVAL
    if not tgt_prog_fd:
        return await _attach(kernel, prog, None, 0)
    if prog.type != BPF_PROG_TYPE_EXT:
        return -EINVAL
    tgt_prog = await bpf_prog_get(kernel, tgt_prog_fd)
    if isinstance(tgt_prog, int):
        return tgt_prog
    fd = await _attach(kernel, prog, tgt_prog, btf_id)
    if fd < 0:
        await bpf_prog_put(kernel, tgt_prog)
    return fd


async def _attach(kernel: Kernel, prog: BpfProg, tgt_prog: BpfProg | None, btf_id: int) -> int:
    key = None if tgt_prog is None else await bpf_trampoline_compute_key(tgt_prog, btf_id)
    link = await kzalloc(kernel, BpfTracingLink, prog, gfp="GFP_USER")
    if link is None:
        return -ENOMEM
    async with mutex(prog.aux.dst_mutex):
        saved = await load(prog.aux.dst_trampoline)
        assert saved is None or isinstance(saved, BpfTrampoline)
        tr = await _trampoline(kernel, prog, saved, tgt_prog, key)
        if isinstance(tr, int):
            await kfree(kernel, link)
            return tr
        primer = await _link(kernel, prog, tr, link)
        if isinstance(primer, int):
            if tr is not saved:
                await bpf_trampoline_put(kernel, tr)
            await kfree(kernel, link)
            return primer
        old = await dst_prog(prog)
        link.trampoline, link.tgt_prog = tr, old if tr is saved else tgt_prog
        if old is not None and tgt_prog is not None:
            await bpf_prog_put(kernel, old)
        if saved is not None and tr is not saved:
            await bpf_trampoline_put(kernel, saved)
        if old is not None:
            await store(prog.aux.dst_prog, None)
        await store(prog.aux.dst_trampoline, None)
    await fd_install(kernel, *primer)
    return primer[0]


async def _trampoline(
    kernel: Kernel,
    prog: BpfProg,
    saved: BpfTrampoline | None,
    tgt_prog: BpfProg | None,
    key: TrampolineKey | None,
) -> BpfTrampoline | int:
    """That of loading, or a new reference to that of another target, or -errno."""
    if tgt_prog is None or key is None:
        return -ENOENT if saved is None else saved
    if saved is not None and key == saved.key:
        return saved
    assert isinstance(key.btf_id, int)
    error = await check_new_target(prog, tgt_prog, key.btf_id)
    if error:
        return error
    tr = await bpf_trampoline_get(kernel, key, await target_function(tgt_prog, key.btf_id))
    return -ENOMEM if tr is None else tr


async def _link(
    kernel: Kernel, prog: BpfProg, tr: BpfTrampoline, link: BpfTracingLink
) -> tuple[int, File] | int:
    """bpf_link_prime() and bpf_trampoline_link_prog(): what is to be installed, or -errno."""
    primer = await anon_inode_prime(kernel, bpf_tracing_link_fops, link)
    if isinstance(primer, int):
        return primer
    error = await bpf_trampoline_link_prog(kernel, prog, tr)
    if not error:
        return primer
    fd, file = primer
    await kfree(kernel, file)
    await put_unused_fd(kernel, fd)
    return error


async def bpf_tracing_link_release(kernel: Kernel, filp: File) -> None:
    link = filp.private_data
    assert isinstance(link, BpfTracingLink)
    assert link.trampoline is not None
    error = await bpf_trampoline_unlink_prog(kernel, link.prog, link.trampoline)
    if error:
        await note("WARN", "bpf_tracing_link_release: bpf_trampoline_unlink_prog")
    await bpf_trampoline_put(kernel, link.trampoline)
    if link.tgt_prog is not None:
        await bpf_prog_put(kernel, link.tgt_prog)
    await bpf_prog_put(kernel, link.prog)
    await kfree(kernel, link)


bpf_tracing_link_fops: Final = FileOperations("bpf_tracing_link", bpf_tracing_link_release)


# -- BPF_LINK_CREATE -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCreateAttr(BpfAttr):
    """BPF_LINK_CREATE.

    target_fd, target_btf_id  a program and the number of its function, from 1 on; 0: as loaded
    """

    prog_fd: int
    target_fd: int = 0
    attach_type: int = 0
    target_btf_id: int = 0


@kernel_function
async def link_create(kernel: Kernel, attr: LinkCreateAttr) -> int:
    """Attach an extension; the other types that v5.10 has links for are not modelled."""
    if attr.unused_tail:
        return -EINVAL
    prog = await bpf_prog_get(kernel, attr.prog_fd)
    if isinstance(prog, int):
        return prog
    fd = -EINVAL
    if prog.type == BPF_PROG_TYPE_EXT and attr.attach_type == prog.expected_attach_type:
        fd = await bpf_tracing_prog_attach(kernel, prog, attr.target_fd, attr.target_btf_id)
    if fd < 0:
        await bpf_prog_put(kernel, prog)
    return fd


bpf_command(BPF_LINK_CREATE, LinkCreateAttr, link_create)


async def bpf_link_create(
    kernel: Kernel, prog_fd: int, target_fd: int = 0, target_btf_id: int = 0
) -> int:
    """Attach an extension from user mode: a descriptor to close for detaching, or -errno."""
    attr = LinkCreateAttr(prog_fd=prog_fd, target_fd=target_fd, target_btf_id=target_btf_id)
    async with syscall(kernel, "bpf"):
        return await sys_bpf(kernel, BPF_LINK_CREATE, attr)
