"""kernel/bpf/syscall.c, bpf_tracing_prog_attach (v5.10): programs attached to functions

A program of a tracing type takes a reference to the trampoline of its function when it is loaded;
attaching gives it to the link. The end of a link takes the program out of the trampoline, drops the
trampoline, and then the program.

Not modelled: links to other targets than at load; look-up of links by id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, final

from kernel_model.bpf.anon_inodes import anon_inode_getfd
from kernel_model.bpf.prog import BpfProg, bpf_prog_put
from kernel_model.bpf.trampoline import (
    BpfTrampoline,
    bpf_trampoline_link_prog,
    bpf_trampoline_put,
    bpf_trampoline_unlink_prog,
)
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import ENOENT, ENOMEM
from kernel_model.linux.file import File, FileOperations
from kernel_model.linux.mutex import mutex
from kernel_model.linux.slab import kfree, kzalloc
from sim.cells import Struct
from sim.macros import load, note, store

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


@final
class BpfTracingLink(Struct):
    """`struct bpf_tracing_link`."""

    KIND = "bpf_tracing_link"

    def __init__(self, prog: BpfProg, trampoline: BpfTrampoline) -> None:
        self.prog: Final = prog
        self.trampoline: Final = trampoline

    def pointers(self) -> Iterator[Struct]:
        """What it keeps."""
        yield self.prog
        yield self.trampoline


@kernel_function
async def bpf_tracing_prog_attach(kernel: Kernel, prog: BpfProg) -> int:
    """A descriptor of the link, or -errno; the caller's reference goes to the link."""
    async with mutex(prog.aux.dst_mutex):
        tr = await load(prog.aux.dst_trampoline)
        if not isinstance(tr, BpfTrampoline):
            return -ENOENT
        link = await kzalloc(kernel, BpfTracingLink, prog, tr, gfp="GFP_USER")
        if link is None:
            return -ENOMEM
        error = await bpf_trampoline_link_prog(kernel, prog, tr)
        if error:
            await kfree(kernel, link)
            return error
        await store(prog.aux.dst_trampoline, None)
    return await anon_inode_getfd(kernel, bpf_tracing_link_fops, link)


async def bpf_tracing_link_release(kernel: Kernel, filp: File) -> None:
    link = filp.private_data
    assert isinstance(link, BpfTracingLink)
    error = await bpf_trampoline_unlink_prog(kernel, link.prog, link.trampoline)
    if error:
        await note("WARN", "bpf_tracing_link_release: bpf_trampoline_unlink_prog")
    await bpf_trampoline_put(kernel, link.trampoline)
    await bpf_prog_put(kernel, link.prog)
    await kfree(kernel, link)


bpf_tracing_link_fops: Final = FileOperations("bpf_tracing_link", bpf_tracing_link_release)
