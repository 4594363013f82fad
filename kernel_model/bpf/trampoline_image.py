"""arch/x86/net/bpf_jit_comp.c, arch_prepare_bpf_trampoline (v5.10): what trampolines execute

A trampoline is a page of two halves; a half that is in use calls the programs of a function, and
the function itself if a program wants to know its result. Whoever comes back to a half executes
what is there by then: if that is not what it entered, the machine says so.

Positions in an image: "glue" (no section of any flavour), "prog" (inside the section of the program
that it calls) and "orig" (the function itself is called).

Not modelled: saving arguments as memory; how long the code of a half is, and that it may not fit;
what rax holds behind a function of the kernel that returns nothing is nobody's promise, and 0 here;
that with 116e04ba1459 rax points to the count, so that without 2b5dcb31a19a the pointer is lost.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from kernel_model.bpf.jit_run import Unset
from kernel_model.fixes import Fix
from kernel_model.linux.errno import ENOTSUPP
from kernel_model.linux.preempt import migrate_disable
from kernel_model.linux.slab import kfree
from kernel_model.linux.task import might_fault
from kernel_model.rcu.tasks import call_rcu_tasks
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace
from kernel_model.rcu.tree import rcu_read_lock
from kernel_model.x86.cpu import Corrupted, Jump
from kernel_model.x86.text import POKE_SIZE, Image
from sim.cells import Cell, Lvalue, as_int, cell
from sim.events import Frame
from sim.macros import READ_ONCE, fetch, load, note, rewrite, rmw
from sim.ops import Op

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kernel_model.bpf.prog import BpfProg
    from kernel_model.kernel import Kernel
    from kernel_model.x86.cpu import Machine

PAGE_SIZE: Final = 4096
HALF: Final = PAGE_SIZE // 2
_U64: Final = (1 << 64) - 1
Progs = tuple["BpfProg", ...]
MAX_ARGS: Final = 6  # of a traced function, in registers
_STEP: Final = 16  # bytes of an image between two of its positions here


class ProgCall(NamedTuple):
    """A call of a program, as it stands in an image: the address, and which wrappers are around."""

    addr: int
    sleepable: bool

    def told(self, kind: str) -> str:
        """The call as it reads in a listing."""
        return f"call   {self.addr:#x}  # {kind}{', sleepable' if self.sleepable else ''}"


class TrampolineCode(NamedTuple):
    """What a half consists of: the programs in the order in which they run.

    func       where the function goes on behind its entry site
    nr_args    of the function
    call_orig  whether the image calls the function itself
    """

    func: int
    nr_args: int
    fentry: tuple[ProgCall, ...]
    fmod_ret: tuple[ProgCall, ...]
    fexit: tuple[ProgCall, ...]

    @property
    def call_orig(self) -> bool:
        return bool(self.fmod_ret or self.fexit)

    def calls(self) -> Iterator[str]:
        """The calls in order, as they read in a listing."""
        for prog in (*self.fentry, *self.fmod_ret):
            yield prog.told("fentry" if prog in self.fentry else "fmod_ret")
        yield f"{'call' if self.call_orig else 'jmp'}   {self.func:#x}  # the function"
        for prog in self.fexit:
            yield prog.told("fexit")


@final
class TrampolineImage(Image):
    """The page of a trampoline: what its two halves contain.

    pcref  of those that are in an image that calls the function (with e21aa341785c)
    skip   whether the programs behind the original function are skipped (likewise)
    """

    KIND = "bpf_trampoline_image"

    half0: Cell[TrampolineCode | None] = cell(None, offset=0, size=HALF)
    half1: Cell[TrampolineCode | None] = cell(None, offset=HALF, size=HALF)
    pcref: Cell[int] = cell(1, offset=PAGE_SIZE)
    skip: Cell[bool] = cell(False, offset=PAGE_SIZE + 8)

    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__(kernel, f"bpf_trampoline_{name}", PAGE_SIZE, {})
        self.halves: Final = (self.half0, self.half1)
        self.size = PAGE_SIZE + 64
        for at in (0, HALF):
            self.entries[at] = partial(_run_image, self, at)

    def field_name(self, place: Lvalue[Any]) -> str:
        for name in ("half0", "half1", "pcref", "skip"):
            if vars(self)[name] is place:
                return f".{name}"
        return super().field_name(place)

    def symbol(self, pc: int) -> str:
        """The address with the position that it stands for."""
        position = ("glue", "prog", "orig")[(pc - self.addr) % HALF // _STEP % 3]
        return f"{self.name}+{pc - self.addr:#x} ({position})"

    def disassembly(self) -> str:
        """What each half calls, in order; how its code is laid out is not modelled."""
        lines = [f"{self.addr:016x} <{self.name}>:"]
        for number, half in enumerate(self.halves):
            code = half.value  # for who looks at a run; no step of it
            if code is not None:
                lines.append(f"{half.addr:x}:  half {number}, {code.nr_args} arguments")
                lines += [f" {line}" for line in code.calls()]
        return "\n".join(lines)


class _Position:
    """Where a CPU is in an image: its modelled stack frame."""

    def __init__(self, image: TrampolineImage) -> None:
        self.image = image
        self.pc = image.addr

    def frame(self) -> Frame:
        return Frame(self.image.symbol(self.pc))


async def _at(run: _Run, position: str) -> None:
    """The CPU fetches its next instruction, in that position."""
    pc = run.base + _STEP * ("glue", "prog", "orig").index(position)
    run.position.pc = pc
    now = await fetch(run.place, pc, pc)
    if run.code is None:
        run.code = now
    if now is None or now != run.code:
        await note("rewritten", Corrupted(run.image.symbol(pc), run.image))


class _Run:
    """One run of an image.

    code  what was there when the image was entered
    """

    def __init__(self, image: TrampolineImage, at: int, position: _Position) -> None:
        self.image = image
        self.base = image.addr + at
        self.place: Cell[TrampolineCode | None] = image.halves[at // HALF]
        self.position = position
        self.code: TrampolineCode | None = None


async def _run_image(image: TrampolineImage, at: int, m: Machine) -> Jump | None:
    modelled_frame = _Position(image)
    run = _Run(image, at, modelled_frame)
    await _at(run, "glue")
    assert run.code is not None
    code, given, count = run.code, m.args, m.rax
    args = given[: code.nr_args]
    counted = code.call_orig and m.kernel.has(Fix.FEXIT_IMAGE)
    if counted:
        await __bpf_tramp_enter(image)
        m.rax = 0
    for prog in code.fentry:
        await _call_prog(run, m, prog, args)
    if not code.call_orig:
        m.args = given
        if m.kernel.has(Fix.TAIL_CALL_TRAMPOLINE):
            m.rax = count
        await _at(run, "glue")
        return Jump(m.pop())
    result, skip = 0, False
    for prog in code.fmod_ret:
        result = await _call_prog(run, m, prog, (*args, 0))
        if result:
            break
    if not result:
        result = await _call_original(run, m, (given, count))
        skip = counted and await READ_ONCE(image.skip)
    for prog in () if skip else code.fexit:
        await _call_prog(run, m, prog, (*args, result))
    if counted:
        await __bpf_tramp_exit(m.kernel, image)
    await _at(run, "glue")
    m.rax = result
    m.pop()  # the function does not go on behind its entry site
    m.pc = m.pop()
    return None


async def _call_original(run: _Run, m: Machine, saved: tuple[tuple[Any, ...], int]) -> int:
    assert run.code is not None
    m.args, count = saved
    if m.kernel.has(Fix.TAIL_CALL_TRAMPOLINE):
        m.rax = count
    result = await m._call(run.code.func, run.base + 2 * _STEP)
    await _at(run, "orig")
    return result


async def __bpf_tramp_enter(im: TrampolineImage) -> None:
    await rmw(im.pcref, "add", 1, "percpu_ref_get")


async def __bpf_tramp_exit(kernel: Kernel, im: TrampolineImage) -> None:
    if await rmw(im.pcref, "add", -1, "percpu_ref_put") == 1:
        await call_rcu_tasks(kernel, __bpf_tramp_image_free, kernel, im)


async def __bpf_tramp_image_free(kernel: Kernel, im: TrampolineImage) -> None:
    await kfree(kernel, im, "bpf_jit_free_exec")


async def _call_prog(run: _Run, m: Machine, prog: ProgCall, args: tuple[Any, ...]) -> int:
    """The enter wrapper, the program, the exit wrapper."""
    if prog.sleepable:
        async with rcu_read_lock_trace():
            await might_fault()
            result = await _in_prog(run, m, prog, args)
    else:
        async with rcu_read_lock(), migrate_disable():
            result = await _in_prog(run, m, prog, args)
    m.rax = 0  # the exit wrapper
    await _at(run, "glue")
    return result


async def _in_prog(run: _Run, m: Machine, prog: ProgCall, args: tuple[Any, ...]) -> int:
    await _at(run, "prog")
    outer, rsp, top = m.context, m.rsp, m.top
    chain = m.tail_calls, m.count, m.level  # of a program that is traced
    m.tail_calls, m.count, m.level = [], 0, 1
    values = [int(arg) & _U64 if isinstance(arg, int) else 0 for arg in args]
    m.rsp -= 8 * len(values)
    start = m.rsp - m.low
    m.stack[start : start + 8 * len(values)] = struct.pack(f"<{len(values)}Q", *values)
    m.context, m.top = (m.rsp, m.rsp + 8 * len(values)), m.rsp - 16
    m.args = (m.rsp, Unset, Unset, Unset, Unset)
    result = await m._call(prog.addr, run.base + _STEP)
    m.rsp, m.context, m.top = rsp, outer, top
    m.tail_calls, m.count, m.level = chain
    await _at(run, "prog")
    return result & 0xFFFF_FFFF


async def arch_prepare_bpf_trampoline(
    func: Image, nr_args: int, fentry: Progs, fmod_ret: Progs, fexit: Progs
) -> TrampolineCode | int:
    """The code for a function with these programs, whose addresses are put into it, or -errno."""
    if nr_args > MAX_ARGS:
        return -ENOTSUPP
    calls = [await _calls(progs) for progs in (fentry, fmod_ret, fexit)]
    return TrampolineCode(func.addr + POKE_SIZE, nr_args, *calls)


async def _calls(progs: Progs) -> tuple[ProgCall, ...]:
    return tuple(
        [ProgCall(as_int(await load(prog.bpf_func)), prog.aux.sleepable) for prog in progs]
    )


def write_half(image: TrampolineImage, half: int, code: TrampolineCode) -> Op[None]:
    """The code goes into a half, by plain stores: nobody is to be there."""
    return rewrite(image.halves[half], code, "arch_prepare_bpf_trampoline")
