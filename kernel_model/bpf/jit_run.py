"""arch/x86/net/bpf_jit_comp.c (v5.10): what CPUs do around the instructions of a program

The prologue, the epilogue, calls and tail calls, as they change the registers and the kernel stack
(`kernel_model.x86.cpu`). Nothing here knows what state a tail call's two sites may be in: a CPU
that has popped its registers and does not jump goes on with what it has.

A frame, from the frame pointer down: the stack of the program, the tail-call counter (its upper
half counts), the callee-saved registers that the function uses.

Not modelled: retpolines; the register that holds the counter between the sequences is rax, which
programs overwrite only by what they return.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, cast

from kernel_model.fixes import Fix
from kernel_model.rcu.tree import rcu_dereference_raw
from kernel_model.x86.alternative import _fetch_site
from kernel_model.x86.cpu import Corrupted, Jump, Mismatch
from kernel_model.x86.text import POKE_SIZE, Image, image_at
from sim.events import Frame
from sim.macros import load, note

if TYPE_CHECKING:
    from kernel_model.bpf.arraymap import BpfArray
    from kernel_model.bpf.core import BpfRun
    from kernel_model.bpf.jit import BpfImage
    from kernel_model.bpf.prog import BpfProg
    from kernel_model.x86.cpu import Machine
    from kernel_model.x86.text import Site, Text

MAX_CALL_FRAMES: Final = 8
MAX_TAIL_CALL_CNT: Final = 32
U32: Final = 0xFFFF_FFFF
_COUNT: Final = struct.Struct("<I")


class Unset:
    """What an argument register holds that the caller has not initialised."""


class Position:
    """Where a function of a program is: the modelled stack frame of its coroutine."""

    __slots__ = ("at", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.at = 0

    def frame(self) -> Frame:
        return Frame(self.name, self.at)


# -- entering and leaving ------------------------------------------------------------------------


async def _enter(image: BpfImage, m: Machine) -> Jump | None:
    """Offset 0: the entry site, which may lead to an extension or a trampoline."""
    seen = await _fetch_site(m.kernel, image.sites[0])
    if seen.op == "jmp":
        return Jump(seen.target)
    if seen.op == "call":
        m.push(image.addr + POKE_SIZE)
        return Jump(seen.target)
    return await _prologue(image, m)


async def _enter_behind(image: BpfImage, m: Machine) -> Jump | None:
    """Behind the entry site, where a trampoline returns to, or calls the function."""
    await image.fetch(image.addr + POKE_SIZE)
    return await _prologue(image, m)


async def _prologue(image: BpfImage, m: Machine) -> Jump | None:
    """The counter, the frame pointer, the frame."""
    if image.layout.number == 0:
        m.rax = 0
    m.push(m.rbp)
    m.rbp = m.rsp
    m.rsp -= image.layout.sd
    push_frame(image, m)
    if image.layout.in_place:
        m.push(0)
    return await _body(image, m)


async def _land(image: BpfImage, m: Machine) -> Jump | None:
    """The landing point of tail calls: the frame pointer is that of who jumped."""
    layout = image.layout
    await image.fetch(image.addr + layout.landing)
    m.level = 1
    if not layout.in_place:  # else the whole frame is
        m.rsp -= layout.sd
        push_frame(image, m)
    return await _body(image, m)


async def _body(image: BpfImage, m: Machine) -> Jump | None:
    """The instructions, and the epilogue."""
    layout = image.layout
    run = image.new_run(m)
    result = await image.function(run, m.rbp - m.low, *m.args)
    if isinstance(result, Jump):
        return result
    m.rax = result
    await image.fetch(image.addr + layout.epilogue)
    if layout.in_place:
        m.pop()
    pop_saved(image, m)
    m.rsp = m.rbp
    m.rbp = m.pop()
    m.pc = m.pop()
    return None


def push_frame(image: BpfImage, m: Machine) -> None:
    """The counter's slot, and the registers that the function uses."""
    if image.layout.reachable:
        m.push(m.rax)
    for name in image.layout.saved:
        m.push(getattr(m, name))


def pop_saved(image: BpfImage, m: Machine) -> None:
    """The registers of the caller, as they lie on the stack."""
    for name in reversed(image.layout.saved):
        setattr(m, name, m.pop())


def unwind_frame(image: BpfImage, m: Machine) -> None:
    """What a tail call does before it jumps; only the frame pointer is left."""
    pop_saved(image, m)
    m.rax = m.pop()
    m.rsp += image.layout.sd


# -- calls ---------------------------------------------------------------------------------------


async def _call_c(run: BpfRun) -> None:
    """Before a helper is called: the return address goes to the stack."""
    m, layout = run.machine, run.image.layout
    if layout.sd and m.rsp > m.rbp - layout.sd:
        what = f"wrong stack: a call from {run.text.name} overwrites its variables"
        await note("corrupted", Corrupted(what, run.image))
    m.write(m.rsp - 8, run.image.addr + layout.epilogue)


async def _call_bpf(run: BpfRun, callee: int, args: list[Any]) -> int:
    """Call another function of the program."""
    m, layout = run.machine, run.image.layout
    await _call_c(run)
    if layout.reachable:
        depth = layout.sd if m.kernel.has(Fix.TAIL_CALL_COUNT_OFFSET) else layout.stack_depth
        m.rax = m.read(m.rbp - depth - 8)
    outer, m.args, level = m.args, tuple(args), m.level
    m.level += 1
    if m.level > MAX_CALL_FRAMES:
        raise run.error(run.at, f"more than {MAX_CALL_FRAMES} nested calls")
    target = run.text.images[callee]
    result = await m._call(target.addr, run.image.addr + layout.epilogue)
    m.args, m.level = outer, level
    return result


async def _tail_call(run: BpfRun, imm: int, array_addr: Any, index: Any) -> Jump | None:
    """bpf_tail_call(): a jump, or None if the program goes on."""
    m, image = run.machine, run.image
    if imm:
        if not _count_up(run):
            return None
        bypass, target = image.tail_sites[imm - 1]
        return await _direct(run, bypass, target)
    array = m.kernel.memory.object_at(array_addr)
    assert array is not None  # the verifier saw to it
    return await _indirect(run, cast("BpfArray", array), index & U32)


async def _direct(run: BpfRun, bypass: Site | None, target: Site) -> Jump | None:
    m, image = run.machine, run.image
    kernel = m.kernel
    if image.layout.in_place:
        return await _jump(run, await _fetch_site(kernel, target))
    assert bypass is not None
    push_back = kernel.has(Fix.PUSH_BACK)
    if not push_back and (await _fetch_site(kernel, bypass)).op == "jmp":
        return None
    unwind_frame(image, m)
    jump = await _jump(run, await _fetch_site(kernel, target))
    if jump is None and push_back:
        m.rsp -= image.layout.sd
        push_frame(image, m)
    return jump


async def _jump(run: BpfRun, seen: Text) -> Jump | None:
    """What the target site says."""
    if seen.op != "jmp":
        return None
    m = run.machine
    image = image_at(m.kernel, seen.target)
    await m._count_tail_call(image.name if image is not None else f"{seen.target:#x}")
    await _compare_types(run, image)
    return Jump(seen.target)


async def _indirect(run: BpfRun, array: BpfArray, index: int) -> Jump | None:
    m, image = run.machine, run.image
    if index >= array.max_entries or not _count_up(run):
        return None
    prog: BpfProg | None = await rcu_dereference_raw(array.ptrs[index & array.index_mask])
    if prog is None:
        return None
    if not image.layout.in_place:
        unwind_frame(image, m)
    to = await load(prog.bpf_func)
    assert isinstance(to, Image)
    await m._count_tail_call(to.name)
    await _compare_types(run, to)
    return Jump(to.addr + image.layout.landing)


async def _compare_types(run: BpfRun, to: Image | None) -> None:
    """No CPU does that: the context of a program of one type means nothing to another type."""
    if isinstance(to, type(run.image)) and not to.freed:
        if to.text.prog_type != run.text.prog_type:
            await note("wrong_type", Mismatch(run.image, to))


def _count_up(run: BpfRun) -> bool:
    """The test of the counter, and its increment; whether a tail call may go on."""
    m, layout = run.machine, run.image.layout
    if m.kernel.has(Fix.TAIL_CALL_HIERARCHY):  # counted by reference
        m.count += 1
        return m.count <= MAX_TAIL_CALL_CNT + 1
    at = m.rbp - layout.sd - 4 - (32 if layout.in_place else 0) - m.low
    count: int = _COUNT.unpack_from(m.stack, at)[0]
    if count > MAX_TAIL_CALL_CNT:
        return False
    _COUNT.pack_into(m.stack, at, count + 1 & U32)
    return True
