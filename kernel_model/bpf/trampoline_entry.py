"""kernel/bpf/trampoline.c (v5.10): the entry site of a function that has a trampoline

That of a function of the kernel belongs to ftrace; that of a program's function is patched as its
tail calls are, and nobody waits for anything.

Not modelled: a function of the kernel that ftrace does not manage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.bpf.ftrace import (
    TracedFunction,
    modify_ftrace_direct,
    register_ftrace_direct,
    unregister_ftrace_direct,
)
from kernel_model.bpf.poke import bpf_arch_text_poke
from kernel_model.x86.text import NOP5, Image, Text

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


async def register_fentry(kernel: Kernel, func: Image, new: int) -> int:
    """The function calls the image at `new` from now on."""
    if isinstance(func, TracedFunction):
        return await register_ftrace_direct(kernel, func, new)
    return await bpf_arch_text_poke(kernel, func.sites[0], NOP5, Text("call", new))


async def modify_fentry(kernel: Kernel, func: Image, old: int, new: int) -> int:
    """The function calls another image."""
    if isinstance(func, TracedFunction):
        return await modify_ftrace_direct(kernel, func, old, new)
    return await bpf_arch_text_poke(kernel, func.sites[0], Text("call", old), Text("call", new))


async def unregister_fentry(kernel: Kernel, func: Image, old: int) -> int:
    """The function calls no image any more."""
    if isinstance(func, TracedFunction):
        return await unregister_ftrace_direct(kernel, func, old)
    return await bpf_arch_text_poke(kernel, func.sites[0], Text("call", old), NOP5)


async def poke_extension(kernel: Kernel, func: Image, old: Image | None, new: Image | None) -> int:
    """The function jumps to that of an extension, or no more."""
    texts = [NOP5 if image is None else Text("jmp", image.addr) for image in (old, new)]
    return await bpf_arch_text_poke(kernel, func.sites[0], *texts)
